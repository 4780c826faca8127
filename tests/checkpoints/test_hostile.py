"""Files made to hang a reader or to take all memory: refused at once, in one line."""

import json
import struct
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdpy.checkpoints import read_checkpoint
from sdpy.checkpoints.storages import pickled_global as _global
from sdpy.checkpoints.storages import pickled_int as _int
from sdpy.checkpoints.storages import pickled_ints as _ints
from sdpy.checkpoints.storages import pickled_text as _text
from sdpy.errors import ShortageError, WeightsError, is_shortage
from sdpy.zoo.inspect import inspect_weights

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors(path: Path, header: Any, data: bytes = b"\0" * 4) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def pickled(path: Path, pickle: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickle, zipfile.ZIP_DEFLATED)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", b"\0" * 4)
    return path


def tensor(*size: int, stride: int = 0) -> bytes:
    where = [_text("storage"), _global("torch", "FloatStorage"), _text("0"), _text("cpu"), _int(1)]
    parts = [b"((", *where, b"tQ", _int(0), _ints(size), _ints([stride] * len(size)), b"\x89"]
    call = _global("torch._utils", "_rebuild_tensor_v2") + b"".join(parts)
    return call + _global("collections", "OrderedDict") + b")RtR"


def long_int(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def refusal(path: Path) -> str:
    start = time.thread_time()
    with pytest.raises(WeightsError) as caught:
        inspect_weights(path)
    # Such files used to take minutes; this is far above what refusing takes.
    assert time.thread_time() - start < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.3000000000.0.weight",
        "encoder.down.300000000.block.0.x",
        "encoder.down.0.block.300000000.x",
        "transformer.resblocks.300000000.ln_1.weight",
        "text_model.encoder.layers.20000000.x",
        "down_blocks.0.attentions.0.transformer_blocks.20000000.norm1.weight",
        "input_blocks." + "9" * 5000 + ".0.weight",
    ],
)
def test_numbers_in_names_are_no_higher_than_there_are_names(tmp_path: Path, name: str) -> None:
    assert "one of only 1 tensors is called" in refusal(safetensors(tmp_path / "x", {name: ONE}))


def test_blocks_times_layers_are_no_more_than_there_are_names(tmp_path: Path) -> None:
    names = ["encoder.down.90.block.0.conv1.weight", "encoder.down.0.block.90.conv1.weight"]
    path = safetensors(
        tmp_path / "x",
        {
            name: ONE if i == 0 else {**ONE, "shape": [0], "data_offsets": [4, 4]}
            for i, name in enumerate(names)
        },
    )
    assert "too few for a network of" in refusal(path)


def test_integer_keys_do_not_collide(tmp_path: Path) -> None:
    items = b"".join(long_int((2**61 - 1) * (k % 4) + (k >> 2)) + b"N" for k in range(20_000))
    colliding = b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * k).to_bytes(10, "little", signed=True) + b"N"
        for k in range(30_000)
    )
    for keys in (items, colliding):
        assert "no tensors by name" in refusal(pickled(tmp_path / "x.pt", b"}(" + keys + b"u."))


def test_a_pickle_of_very_many_instructions_ends(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.pt", b"}(" + b"N0" * 3_000_000 + b"u.")
    assert "POP" in refusal(path)
    path = pickled(tmp_path / "x.pt", b"](" + b"N" * 5_000_000 + b"e.")
    assert "ends early, or never" in refusal(path)


def test_tensors_are_not_much_larger_than_their_file(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.pt", b"}(" + _text("<x>") + tensor(3_000_000, 768) + b"u.")
    assert "would take 9216000000 bytes" in refusal(path)


def test_expanded_tensors_of_ordinary_size_are_read(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.pt", b"}(" + _text("x") + tensor(2, 3) + b"u.")
    assert read_checkpoint(path).tensors["x"].tolist() == [[0.0] * 3] * 2


def npz(path: Path, shape: str, zeros: int, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("x.npy", "w") as member:
        member.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)
        for _ in range(zeros // 2**20):
            member.write(bytes(2**20))
    return path


def test_a_small_archive_of_very_many_zeros(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", "(100, 262144)", 100 * 2**20)
    assert "would take" in refusal(path)


def test_archives_are_stored_or_deflated(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "unusual way" in refusal(npz(tmp_path / "x.npz", "(1,)", 2**20, compression))


@pytest.mark.parametrize("shape", ["(True,)", "(-1,)", "(2.0,)", "(0, 2**63)", "5"])
def test_shapes_are_of_whole_numbers(tmp_path: Path, shape: str) -> None:
    refusal(npz(tmp_path / "x.npz", shape, 2**20))


def test_headers_that_python_2_wrote_are_read_without_a_warning(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", "(5L,)", 2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_checkpoint(path).tensors["x"].tolist() == [0.0] * 5


def test_long_texts_beside_the_weights_are_left_out(tmp_path: Path) -> None:
    text = _text("A" * 1_000_000) + b"q\0"
    again = b"".join(_text(f"k{k}") + b"h\0" for k in range(300))
    path = pickled(
        tmp_path / "x.pt",
        b"}("
        + _text("x")
        + text
        + again
        + _text("step")
        + _int(7)
        + _text("t")
        + tensor(1)
        + b"u.",
    )
    assert read_checkpoint(path).metadata == {"step": "7"}


def test_a_dict_that_is_met_again_and_again(tmp_path: Path) -> None:
    inner = b"}(" + b"".join(_text(f"n{k}") + b"N" for k in range(1000)) + b"uq\0"
    outer = b"".join(_text(f"m{k}" * 100) + b"h\0" for k in range(20_000))
    path = pickled(tmp_path / "x.pt", b"}(" + _text("a") + inner + outer + b"u.")
    tracemalloc.start()
    refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * 2**20


def test_halves_of_characters_are_no_text(tmp_path: Path) -> None:
    half = b"X\x03\0\0\0\xed\xa0\x80"
    refusal(pickled(tmp_path / "x.pt", b"}(" + half + b"N" + _text("a") + tensor(1) + b"u."))


@pytest.mark.parametrize(
    "header",
    [
        [],
        b"[" * 100_000,
        {"a": 1},
        {"a": {**ONE, "shape": [True]}},
        {"a": {**ONE, "shape": [2**62, 0], "data_offsets": [0, 0]}},
        {"a": {**ONE, "shape": "1"}},
        {"a": {**ONE, "data_offsets": [0]}},
        {"a": {**ONE, "data_offsets": [0, "4"]}},
        {"a": {**ONE, "dtype": 7}},
        {"a": ONE, "__metadata__": {"x": 1}},
        {"a": ONE, "__metadata__": "x"},
    ],
)
def test_headers_of_the_wrong_type(tmp_path: Path, header: Any) -> None:
    refusal(safetensors(tmp_path / "x.safetensors", header))


def test_places_may_be_large(tmp_path: Path) -> None:
    """Their product is of no interest."""
    size = 5_000_000
    header = {
        "a": {**ONE, "shape": [4 * size], "data_offsets": [0, 16 * size]},
        "b": {**ONE, "shape": [size], "data_offsets": [16 * size, 20 * size]},
    }
    path = safetensors(tmp_path / "x.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4 + 20 * size)
    assert read_checkpoint(path).tensors["b"].shape == (size,)


def test_headers_that_the_library_takes(tmp_path: Path) -> None:
    entry = json.dumps(ONE).encode()
    for header in (b' \n {"a":' + entry + b"}", b'{"__metadata__":null,"a":' + entry + b"}"):
        found = read_checkpoint(safetensors(tmp_path / "x.safetensors", header))
        assert found.tensors["a"].tolist() == [0.0]
        assert found.metadata == {}


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "F6_E2M3"])
def test_numbers_that_torch_does_not_have(tmp_path: Path, dtype: str) -> None:
    path = safetensors(tmp_path / "x.safetensors", {"a": {**ONE, "shape": [8], "dtype": dtype}})
    assert f"numbers of kind {dtype}, which sdpy does not read; take" in refusal(path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
)
def test_lack_of_memory_is_told_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert is_shortage(error)
    path = safetensors(tmp_path / "x.safetensors", {"a": ONE})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sdpy.checkpoints.safetensors.map_file", fail)
    if isinstance(error, ImportError):
        return
    with pytest.raises(ShortageError, match=str(path)):
        read_checkpoint(path)


def test_what_lies_beside_the_weights_is_skipped(tmp_path: Path) -> None:
    """Written by torch and NumPy themselves, in all protocols of pickle."""
    import collections
    import datetime

    beside = {
        "array": np.arange(5),
        "rng": np.random.get_state(),
        "date": datetime.datetime(2023, 1, 1),
        "loops": collections.defaultdict(int, a=1),
        "queue": collections.deque([1, 2]),
        "some": [range(3), 1j, b"abc", {1, 2}, frozenset({1}), {(1, 2): 3}, slice(1)],
    }
    content = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 3, **beside}
    for protocol in (2, 3, 4, 5):
        for new in (True, False):
            torch.save(
                content,
                tmp_path / "x.ckpt",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=new,
            )
            if protocol != 2 and not new:
                continue  # its first bytes are those of protocol 2 only
            found = read_checkpoint(tmp_path / "x.ckpt")
            assert {name: t.tolist() for name, t in found.tensors.items()} == {"weight": [0, 1, 2]}
            assert found.metadata == {"epoch": "3"}


def test_python_2s_ordered_dict_keeps_its_items(tmp_path: Path) -> None:
    pair = b"](" + _text("w") + tensor(1) + b"e"
    items = _global("collections", "OrderedDict") + b"](" + pair + b"e\x85R"
    path = pickled(tmp_path / "x.pt", items + b".")
    assert read_checkpoint(path).tensors["w"].tolist() == [0.0]


@pytest.mark.parametrize(
    "called", ["os.system", "builtins.eval", "subprocess.Popen", "torch.hub.load", "ldm.util.run"]
)
def test_calls_of_what_could_do_harm_are_refused(tmp_path: Path, called: str) -> None:
    module, _, name = called.rpartition(".")
    call = _global(module, name) + b"(" + _text("x") + b"tR"
    path = pickled(tmp_path / "x.pt", b"}(" + _text("a") + call + _text("t") + tensor(1) + b"u.")
    assert f"asks for {called}" in refusal(path)
