"""NumPy's archives: its files in our hands, ours in NumPy's."""

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.checkpoints.npz import DTYPE_NAMES
from sdpy.errors import WeightsError

DATA = Path(__file__).parents[1] / "data" / "ot"


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        "scalar": np.array(1.5, np.float32),
        "empty": np.empty((0, 3), np.float32),
        "block.0.weight": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((3, 5)).astype(np.float32)),
    }
    for dtype in DTYPE_NAMES.values():
        found[f"kind.{dtype[1:]}"] = rng.integers(0, 2, (4, 3)).astype(dtype)
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_we_read_what_numpy_writes(tmp_path: Path, save: object) -> None:
    expected = arrays()
    save(tmp_path / "x.npz", **expected)
    checkpoint = read_checkpoint(tmp_path / "x.npz")
    assert checkpoint.format == "npz"
    assert list(checkpoint.tensors) == list(expected)
    for name, array in expected.items():
        tensor = checkpoint.tensors[name]
        assert tensor.numpy().dtype == array.dtype
        assert tensor.numpy().tobytes() == array.tobytes()
        assert checkpoint.outline[name].shape == tensor.shape == array.shape
        assert checkpoint.outline[name].dtype == tensor.dtype


def test_the_source_of_a_converted_archive_has_the_same_tensors() -> None:
    """``in.npz`` was turned into ``npz2ot.ot`` by tch's own tool."""
    source = read_checkpoint(DATA / "tch" / "in.npz").tensors
    converted = read_checkpoint(DATA / "tch" / "npz2ot.ot").tensors
    assert set(source) == set(converted)
    for name, tensor in source.items():
        assert torch.equal(tensor, converted[name])
        assert tensor.dtype == converted[name].dtype


def test_numpy_reads_what_we_write(tmp_path: Path) -> None:
    base = torch.randn(3, 4)
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    tensors |= {"transposed": base.t(), "view": base[:, 1]}
    write_checkpoint(tmp_path / "x.npz", tensors)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as got:
        assert set(got) == set(tensors)
        for name, tensor in tensors.items():
            assert got[name].dtype == tensor.numpy().dtype
            assert got[name].shape == tuple(tensor.shape)
            assert np.array_equal(got[name], tensor.numpy())


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="bfloat16"):
        write_checkpoint(tmp_path / "x.npz", {"a": torch.ones(2).bfloat16()})


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.npz", {"a": torch.ones(100)})
    before = (tmp_path / "x.npz").read_bytes()
    read_checkpoint(tmp_path / "x.npz").tensors["a"].fill_(2)
    assert (tmp_path / "x.npz").read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_our_own_files_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_checkpoint(path, {"a": torch.ones(100), "b": torch.ones(7)})
    tensors = [tensor for _, tensor in read_checkpoint(path).tensors.items()]
    mapped = [
        range(*(int(bound, 16) for bound in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path.resolve()))
    ]
    assert all(any(tensor.data_ptr() in pages for pages in mapped) for tensor in tensors)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY\x09\x00\x00\x00",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x02N."),
        npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2**70,), }", bytes(4)),
        npy("__import__('os').system('false')"),
        npy("(" * 5000),
    ],
)
def test_arrays_that_make_no_sense_are_refused(tmp_path: Path, member: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", member)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused_or_harmless(tmp_path: Path, save: object) -> None:
    rng = random.Random(0)
    buffer = io.BytesIO()
    save(buffer, a=np.arange(6.0).reshape(2, 3), b=np.ones(3, np.float16))
    good, path, outcomes = buffer.getvalue(), tmp_path / "x.npz", []
    damaged = [good[:length] for length in range(1, len(good), 7)]
    for _ in range(500):
        flipped = bytearray(good)
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        try:
            tensors = read_checkpoint(path).tensors
            outcomes.append(sum(int(tensor.numel()) for _, tensor in tensors.items()))
        except WeightsError as error:
            assert "\n" not in str(error)
            outcomes.append(-1)
    assert -1 in outcomes
    assert 9 in outcomes
