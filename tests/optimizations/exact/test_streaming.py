"""Weights that come and go give what weights that stay give, bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, Checkpoint, MappedFile, load_weights, write_checkpoint
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sdpy.optimizations.base import PassContext, networks_of
from sdpy.optimizations.exact import apply_passes, streaming
from sdpy.optimizations.weights import ModelWeights
from support.compare import normal, randomise, relative_error
from support.mapped import resident_kilobytes
from support.tiny import TINY, tiny_weights

NAMES = ("text_encoder", "unet", "vae")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 20_000)
    monkeypatch.setattr(streaming, "RESIDENT_BYTES", 3_000)


def empty(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "text_encoder":
            return CLIPTextModel(TINY.text_encoder).eval()
        if name == "unet":
            return UNet2DConditionModel(TINY.unet).eval()
        return AutoencoderKL(TINY.vae).eval()


def write(folder: Path, name: str, dtype: torch.dtype, ending: str = ".safetensors") -> Path:
    path = folder / (name + ending)
    write_checkpoint(path, {key: value.to(dtype) for key, value in tiny_weights(name).items()})
    return path


def streamed(
    path: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    changes: dict[str, Change] | None = None,
) -> tuple[nn.Module, Checkpoint]:
    model = empty(name)
    file = load_weights(model, path, dtype=None)
    stream(model, file, dtype=dtype, changes=changes)
    return model, file


def stream(
    model: nn.Module,
    file: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    changes: dict[str, Change] | None = None,
    **options: bool,
) -> None:
    weights = ModelWeights(model, file, dtype=dtype, device=device, changes=changes)
    context = PassContext(device, dtype, streamed=True, weights=weights, **options)
    apply_passes(model, context)


def run(model: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What a model gives, twice."""
    with torch.inference_mode():
        if isinstance(model, CLIPTextModel):
            return [model(torch.arange(10)[None] + i) for i in range(2)]
        if isinstance(model, UNet2DConditionModel):
            context = normal(2, 7, 32, seed=2).to(dtype)
            return [
                model(normal(2, 4, 8, 8, seed=i).to(dtype), torch.tensor(500 + i), context)
                for i in range(2)
            ]
        assert isinstance(model, AutoencoderKL)
        image, latents = normal(1, 3, 16, 16).to(dtype), normal(1, 4, 8, 8).to(dtype)
        return [model.encode(image).mean, model.decode(latents), model.decode(latents)]


def pieces_of(model: nn.Module, itemsize: int = 4) -> list[nn.Module]:
    return [piece for network in networks_of(model) for piece in streaming._cut(network, itemsize)]


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_gives_the_same_bits(
    tmp_path: Path, name: str, stored: torch.dtype, wanted: torch.dtype
) -> None:
    path = write(tmp_path, name, stored)
    plain = empty(name)
    load_weights(plain, path, dtype=wanted)
    model, _ = streamed(path, name, wanted)
    assert len(pieces_of(model)) > 3
    for ours, theirs in zip(run(model, wanted), run(plain, wanted), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ending", [".ot", ".npz", ".bin"])
def test_from_any_format(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, "unet", torch.float16, ending)
    plain = empty("unet")
    load_weights(plain, path)
    model, _ = streamed(path, "unet")
    for ours, theirs in zip(run(model), run(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_changes_are_made_at_each_use(tmp_path: Path, stored: torch.dtype) -> None:
    """Also to a weight that stays, and of those that run twice only once each time."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    small = "mid_block.resnets.0.norm1.weight"
    path = write(tmp_path, "unet", stored)
    plain = empty("unet")
    load_weights(plain, path)
    for one in (name, small):
        plain.get_parameter(one).data = 2 * plain.get_parameter(one) + 1
    model, _ = streamed(path, "unet", changes={one: lambda w: 2 * w + 1 for one in (name, small)})
    for ours, theirs in zip(run(model), run(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["unet", "vae"])
def test_with_faster_layers(tmp_path: Path, name: str, stored: torch.dtype) -> None:
    path = write(tmp_path, name, stored)
    plain = empty(name)
    load_weights(plain, path)
    model = empty(name)
    file = load_weights(model, path, dtype=None)
    stream(model, file, fast_kernels=True, tiled=True)
    for ours, theirs in zip(run(model), run(plain), strict=True):
        assert relative_error(ours, theirs) <= 1e-5
    assert any("Conv2d" not in str(piece) for piece in pieces_of(model))
    at_rest(model, stored)


# --- memory ------------------------------------------------------------------------------------


def at_rest(model: nn.Module, stored: torch.dtype) -> None:
    """Checks that weights are again what the file holds."""
    pieces = pieces_of(model)
    assert pieces
    for piece in pieces:
        assert {parameter.dtype for parameter in piece.parameters()} == {stored}


@pytest.mark.parametrize("name", NAMES)
def test_no_two_pieces_are_there_together(tmp_path: Path, name: str) -> None:
    model, _ = streamed(write(tmp_path, name, torch.float16), name)
    seen: list[str] = []

    def look(module: nn.Module, *_: object) -> None:
        there = [n for n, piece in named.items() if is_there(piece)]
        assert there == [n for n, piece in named.items() if piece is module]
        seen.extend(there)

    def is_there(piece: nn.Module) -> bool:
        return any(parameter.dtype == torch.float32 for parameter in piece.parameters())

    run(model)  # after which it is cut
    named = {str(i): piece for i, piece in enumerate(pieces_of(model))}
    for piece in named.values():
        piece.register_forward_hook(look, prepend=True)
    run(model)
    assert set(seen) == set(named)
    at_rest(model, torch.float16)


def test_a_piece_that_fails_is_dropped(tmp_path: Path) -> None:
    model, _ = streamed(write(tmp_path, "unet", torch.float16), "unet")

    def fail(*_: object) -> None:
        raise ValueError("stop")

    assert isinstance(model, UNet2DConditionModel)
    handle = model.mid_block.resnets[0].conv1.register_forward_hook(fail)
    with pytest.raises(ValueError, match="stop"):
        run(model)
    at_rest(model, torch.float16)
    handle.remove()
    plain = empty("unet")
    load_weights(plain, tmp_path / "unet.safetensors")
    assert torch.equal(run(model)[0], run(plain)[0])


def test_the_next_piece_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = streamed(write(tmp_path, "unet", torch.float32), "unet")
    run(model)
    pieces = pieces_of(model)
    owner = {p.data_ptr(): i for i, piece in enumerate(pieces) for p in piece.parameters()}
    log: list[tuple[str, int]] = []

    def noting(what: str, method: Callable[..., None]) -> Callable[..., None]:
        def note(self: MappedFile, tensor: Tensor) -> None:
            if (what, owner[tensor.data_ptr()]) not in log[-1:]:
                log.append((what, owner[tensor.data_ptr()]))
            method(self, tensor)

        return note

    monkeypatch.setattr(MappedFile, "expect", noting("expect", MappedFile.expect))
    monkeypatch.setattr(MappedFile, "forget", noting("forget", MappedFile.forget))
    run(model)
    order = [piece for what, piece in log if what == "forget"]
    assert sorted(order[: len(pieces)]) == list(range(len(pieces)))
    assert order[: len(pieces)] == order[len(pieces) :]
    expected = [piece for what, piece in log if what == "expect"]
    assert expected[:-1] == order[1:]  # each while the one before it runs
    assert log[0] == ("expect", order[1]) and log[1] == ("forget", order[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_pages_of_the_file_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 2**20)
    layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(20)))  # of 1 MiB each
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(20)))
    path = tmp_path / "layers.safetensors"
    write_checkpoint(path, randomise(layers).state_dict())
    file = load_weights(model, path, dtype=None)
    x = normal(1, 512)
    expected = model(x)
    assert resident_kilobytes(path) >= 20 * 1024
    file.forget()
    assert resident_kilobytes(path) == 0

    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, resident_kilobytes(path))

    stream(model, file)
    for _ in range(2):
        assert torch.equal(model(x), expected)
        # What lies on a page with a neighbour, and what the system maps in passing.
        assert resident_kilobytes(path) <= 2 * 1024
        for layer in model:
            layer.register_forward_hook(look, prepend=True)
    assert 1024 <= most <= 4 * 1024


# --- devices -----------------------------------------------------------------------------------


def test_pieces_go_to_the_device_and_come_back(tmp_path: Path) -> None:
    """The meta device, which computes nothing, stands in for a GPU."""
    meta = torch.device("meta")
    model = empty("unet")
    file = load_weights(model, write(tmp_path, "unet", torch.float32), dtype=None)
    stream(model, file, dtype=torch.float16, device=meta)
    before = {name: parameter.device for name, parameter in model.named_parameters()}
    assert before["conv_in.weight"] == meta  # stays there
    where: set[tuple[str, str]] = set()
    for name, module in model.named_modules():
        for place, parameter in module.named_parameters(recurse=False):
            del parameter

            def look(module: nn.Module, *_: object, name: str = name, place: str = place) -> None:
                parameter = module.get_parameter(place)
                where.add((f"{name}.{place}", f"{parameter.device} {parameter.dtype}"))

            module.register_forward_hook(look, prepend=True)
    with torch.inference_mode():
        sample, context = normal(1, 4, 8, 8), normal(1, 7, 32)
        result = model(
            sample.to(meta, torch.float16), torch.tensor(5).to(meta), context.to(meta).half()
        )
    assert (result.device, result.dtype) == (meta, torch.float16)
    assert where == {(name, "meta torch.float16") for name in before}
    for piece in pieces_of(model, itemsize=2):
        assert {parameter.device for parameter in piece.parameters()} == {CPU}
