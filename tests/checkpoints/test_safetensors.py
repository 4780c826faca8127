"""Our .safetensors files in the hands of the format's own library, and its files in ours."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.checkpoints.safetensors import DTYPE_NAMES
from sdpy.errors import WeightsError


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def some_tensors() -> dict[str, Tensor]:
    tensors = {"scalar": torch.tensor(1.5), "empty.one": torch.empty(0, 3)}
    for dtype in DTYPE_NAMES:
        count = 6 * dtype.itemsize
        noise = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
        tensors[f"block.{DTYPE_NAMES[dtype]}"] = noise.view(dtype).reshape(2, 3)
    return tensors


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = some_tensors()
    base = torch.arange(12.0).reshape(3, 4)
    views = {"transposed": base.t(), "column": base[:, 1], "base": base, "größe": base[1:]}
    write_checkpoint(path, {**tensors, **views}, {"made": "here", "größe": "3"})
    got = load_file(path)
    assert set(got) == set(tensors) | set(views)
    for name, tensor in {**tensors, **views}.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert bits(got[name]) == bits(tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here", "größe": "3"}


def test_our_bytes_are_the_librarys(tmp_path: Path) -> None:
    """For one dtype; among several of one width the library has an order of its own."""
    tensors = {name: torch.randn(3, n) for n, name in enumerate(["b.c", "a", "b.a", "größe"])}
    save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    write_checkpoint(tmp_path / "ours.safetensors", tensors)
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("ours", "library"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = some_tensors()
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"format": "pt"}
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert checkpoint.tensors[name].shape == tensor.shape
        assert bits(checkpoint.tensors[name]) == bits(tensor)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", {})
    assert load_file(tmp_path / "x.safetensors") == {}
    assert dict(read_checkpoint(tmp_path / "x.safetensors").tensors) == {}


@pytest.mark.parametrize("size", ["shorter", "longer"])
def test_a_file_of_another_length_than_its_header_says(tmp_path: Path, size: str) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a": torch.ones(100)})
    os.truncate(path, path.stat().st_size + (8 if size == "longer" else -8))
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)
