"""Our .safetensors files in the hands of the format's own library, and its files in ours."""

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpy.checkpoints import check_weights, read_checkpoint, write_checkpoint
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


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, all names are text")
def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    try:
        (tmp_path / "x.safetensors").rename(path)
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(WeightsError, match="is not UTF-8.*rename it"):
        read_checkpoint(path)


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


def with_unpadded_header(path: Path, target: Path) -> None:
    """The same file as writers of old made it: the numbers start at an odd address."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + header_bytes].rstrip()
    header += b" " * (1 - len(header) % 2)
    target.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + header_bytes :])
    assert (8 + len(header)) % 2 == 1


def test_numbers_at_odd_addresses_are_copied_to_even_ones(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_checkpoint(tmp_path / "even.safetensors", tensors)
    with_unpadded_header(tmp_path / "even.safetensors", tmp_path / "odd.safetensors")
    checkpoint = read_checkpoint(tmp_path / "odd.safetensors")
    assert set(load_file(tmp_path / "odd.safetensors")) == set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        got = checkpoint.tensors[name]
        assert bits(got) == bits(tensor)
        assert got.data_ptr() % tensor.dtype.itemsize == 0


def test_the_outline_has_the_names_shapes_and_dtypes(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_checkpoint(tmp_path / "x.safetensors", tensors)
    outline = read_checkpoint(tmp_path / "x.safetensors").outline
    assert set(outline) == set(tensors)
    for name, tensor in tensors.items():
        assert (outline[name].shape, outline[name].dtype) == (tensor.shape, tensor.dtype)


def test_float8_is_refused_by_name(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="8-bit floating-point numbers .fp8."):
        check_weights(nn.Linear(2, 2, device="meta"), tmp_path / "x.safetensors")
