"""torch.save's files in our hands, ours in torch's; code in pickles is not run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.checkpoints.storages import STORAGE_CLASSES
from sdpy.errors import WeightsError


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    tensors = {
        "base": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
    }
    for dtype in STORAGE_CLASSES:
        tensors[f"kind.{dtype}"] = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    return tensors


def assert_same(got: dict[str, Tensor] | Any, expected: dict[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_we_read_what_torch_writes(tmp_path: Path, new: bool, wrapped: bool) -> None:
    tensors = some_tensors()
    path = tmp_path / "x.ckpt"
    content = {"state_dict": tensors, "global_step": 470000} if wrapped else tensors
    torch.save(content, path, _use_new_zipfile_serialization=new)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "torch"
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.metadata == ({"global_step": "470000"} if wrapped else {})


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_modules_state_and_parameters(tmp_path: Path, new: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = module.state_dict()
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=new)
    assert_same(read_checkpoint(tmp_path / "a.bin").tensors, dict(state))
    parameters = dict(module.named_parameters())
    torch.save(parameters, tmp_path / "b.bin", _use_new_zipfile_serialization=new)
    assert_same(read_checkpoint(tmp_path / "b.bin").tensors, parameters)


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_what_we_write(tmp_path: Path, mmap: bool) -> None:
    tensors = some_tensors()
    write_checkpoint(tmp_path / "x.bin", tensors)
    assert_same(torch.load(tmp_path / "x.bin", weights_only=True, mmap=mmap), tensors)
    write_checkpoint(tmp_path / "x.ckpt", tensors)
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True, mmap=mmap)
    assert list(loaded) == ["state_dict"]
    assert_same(loaded["state_dict"], tensors)


class ModelCheckpoint:
    """Stands for the class of that name in training programs, whose checkpoints name it."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_what_training_programs_leave_behind_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, ModelCheckpoint.__module__, module)
    content = {
        "epoch": 3,
        "state_dict": {"weight": torch.arange(3.0)},
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(1.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": argparse.Namespace(folder=Path("x")),
    }
    for new in (True, False):
        torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
        checkpoint = read_checkpoint(tmp_path / "x.ckpt")
        assert {name: t.tolist() for name, t in checkpoint.tensors.items()} == {"weight": [0, 1, 2]}


def test_nested_dicts_get_dotted_names(tmp_path: Path) -> None:
    """As of textual inversion's embeddings."""
    content = {"string_to_param": {"*": torch.ones(2)}, "name": "cat", "step": 5}
    torch.save(content, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert list(checkpoint.tensors) == ["string_to_param.*"]
    assert checkpoint.metadata == {"name": "cat", "step": "5"}


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


class Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.skipif(os.name != "posix", reason="the payloads are for POSIX")
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["beside", "within", "instead"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, new: bool, where: str) -> None:
    marker = tmp_path / "ran"
    payload = Payload(os.system, f"touch '{marker}'")
    tensors: dict[str, Any] = {"weight": torch.ones(2)}
    content: Any = {"state_dict": tensors, "extra": payload}
    if where == "within":
        content = {**tensors, "bias": payload}
    elif where == "instead":
        content = payload
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
    assert "asks for posix.system" in refusal(tmp_path / "x.ckpt")
    assert not marker.exists()


def test_whole_pickled_models_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert "asks for torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")


def test_fp8_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "x.pt")
    assert "8-bit floating-point numbers (fp8)" in refusal(tmp_path / "x.pt")


def test_lists_of_tensors_are_known(tmp_path: Path) -> None:
    torch.save([torch.ones(2, 1), torch.ones(1, 2)], tmp_path / "lora.pt")
    assert "cloneofsimo" in refusal(tmp_path / "lora.pt")


@pytest.mark.parametrize("content", [{}, {"a": 1}, (torch.ones(1),), torch.ones(1)])
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "no tensors by name" in message or "no dict of tensors" in message


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_files_cut_short(tmp_path: Path, new: bool, share: float) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(path)


def test_a_missing_storage_and_two_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(10)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        members = {info.filename: good.read(info) for info in good.infolist()}
    root = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as bad:
        for name, data in members.items():
            if not name.endswith("data/0"):
                bad.writestr(name, data)
    assert "storage 0 is missing" in refusal(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as bad:
        for name, data in {**members, "other/data.pkl": members[f"{root}/data.pkl"]}.items():
            bad.writestr(name, data)
    assert "2 pickles instead of one" in refusal(tmp_path / "y.pt")


def test_a_plain_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": [1.0]}, protocol=2))
    assert "Python pickle" in refusal(tmp_path / "x.pt")
