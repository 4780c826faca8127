"""Damaged and hostile archives: one line of WeightsError, nothing run, no memory taken."""

import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.checkpoints.storages import pickled_global as _global
from sdpy.checkpoints.storages import pickled_int as _int
from sdpy.checkpoints.storages import pickled_ints as _ints
from sdpy.checkpoints.storages import pickled_text as _text
from sdpy.errors import WeightsError

DATA = Path(__file__).parents[1] / "data" / "ot"
MODULE = b"\x80\x02" + _global("__torch__", "Module") + b")\x81}("
END = b"ub."
TWELVE_BYTES = struct.pack("<3f", 1, 2, 3)


def tensor_pickle(
    name: str = "a",
    *,
    storage: str = "FloatStorage",
    key: str = "0",
    numel: int = 3,
    offset: int = 0,
    size: tuple[int, ...] = (3,),
    stride: tuple[int, ...] = (1,),
) -> bytes:
    """One attribute of a module, in the writer's own instructions."""
    where = [_text("storage"), _global("torch", storage), _text(key), _text("cpu"), _int(numel)]
    tensor = [b"(", *where, b"tQ", _int(offset), _ints(size), _ints(stride), b"\x89"]
    call = [_global("torch._utils", "_rebuild_tensor_v2"), b"(", *tensor]
    return _text(name) + b"".join(call) + _global("collections", "OrderedDict") + b")RtR"


def archive(
    path: Path,
    data_pkl: bytes,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for key, data in ({"0": TWELVE_BYTES} if storages is None else storages).items():
            file.writestr(f"x/data/{key}", data)
        file.writestr("x/data.pkl", data_pkl)
        file.writestr("x/constants.pkl", b"\x80\x02).")
        file.writestr("x/version", b"3\n")
    return path


def assert_refused(path: Path, pattern: str | None = None) -> None:
    with pytest.raises(WeightsError, match=pattern) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_archives_of_this_file_are_good_ones(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ot", MODULE + tensor_pickle() + END)
    assert read_checkpoint(path).tensors["a"].tolist() == [1, 2, 3]


def test_a_storage_at_an_odd_address_is_copied(tmp_path: Path) -> None:
    pickled = MODULE + tensor_pickle(key="ab") + tensor_pickle("b", key="abcd") + END
    path = archive(tmp_path / "x.ot", pickled, {"ab": TWELVE_BYTES, "abcd": TWELVE_BYTES})
    assert [t.tolist() for t in read_checkpoint(path).tensors.values()] == [[1, 2, 3]] * 2


def test_the_last_of_two_attributes_of_one_name_counts(tmp_path: Path) -> None:
    pickled = MODULE + tensor_pickle(size=(1,)) + tensor_pickle(size=(2,)) + END
    assert read_checkpoint(archive(tmp_path / "x.ot", pickled)).tensors["a"].tolist() == [1, 2]


# ------------------------------------------------------------------------------ code in pickles


class Payload:
    """A pickle of this touches a file when it is loaded in the ordinary way."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, bytes]:
    touch, make = f"touch '{marker}'", f"open({str(marker)!r}, 'w').close()"
    system = b"cposix\nsystem\n(" + _text(touch) + b"tR"
    return {
        "system": pickle.dumps(Payload(os.system, touch), protocol=2),
        "exec": pickle.dumps(Payload(exec, make), protocol=2),
        "eval in protocol 0": pickle.dumps(Payload(eval, make), protocol=0),
        "STACK_GLOBAL of protocol 4": pickle.dumps(Payload(eval, make), protocol=4),
        "an attribute of a module": MODULE + _text("a") + system + END,
        "beside a good tensor": MODULE + tensor_pickle() + _text("b") + system + END,
        "before the module": b"\x80\x02" + system + b"0" + (MODULE + END)[2:],
        "INST": b"\x80\x02(" + _text(touch) + b"iposix\nsystem\n.",
        "OBJ": b"\x80\x02(cposix\nsystem\n" + _text(touch) + b"o.",
        "getattr from an allowed module": b"\x80\x04"
        + _text("torch._utils")
        + _text("sys.modules")
        + b"\x93."
        + system,
    }


@pytest.mark.skipif(os.name != "posix", reason="the payloads are for POSIX")
@pytest.mark.parametrize("name", payloads(Path("x")))
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    path = archive(tmp_path / "x.ot", payloads(marker)[name])
    assert_refused(path, "asks for|no business")
    assert not marker.exists()


@pytest.mark.skipif(os.name != "posix", reason="the payloads are for POSIX")
@pytest.mark.parametrize("name", ["system", "exec", "INST", "OBJ", "STACK_GLOBAL of protocol 4"])
def test_the_payloads_are_live_ones(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    pickle.loads(payloads(marker)[name])
    assert marker.exists()


# ----------------------------------------------------------------------- nonsense and greediness


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02N.",
        b"\x80\x02(.",
        b"\x80\x02}(.",
        b"\x80\x02t.",
        b"\x80\x02h\x07.",
        b"\x80\x02(q\x00t.",
        b"\x80\x02)\x81.",
        b"\x80\x02NNR.",
        b"\x80\x02}NNs.",
        b"\x80\x02})Ns.",
        b"\x80\x02Na.",
        b"\x80\x02N}b.",
        MODULE,
        MODULE[:-1],
        MODULE + _text("a") + END,
        MODULE + tensor_pickle()[:-1] + END,
        b"\x80\x02" + _global("torch", "FloatStorage") + b")\x81}b.",
        # Lengths and numbers that ask for more memory than there is.
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
    ],
)
def test_nonsense_is_refused(tmp_path: Path, pickled: bytes) -> None:
    assert_refused(archive(tmp_path / "x.ot", pickled))


def test_a_huge_memo_number_takes_no_memory(tmp_path: Path) -> None:
    pickled = MODULE + _text("n") + b"Nr\xfe\xff\xff\xff" + tensor_pickle() + END
    assert list(read_checkpoint(archive(tmp_path / "x.ot", pickled)).tensors) == ["a"]


def test_nesting_that_doubles_at_every_level_takes_no_time(tmp_path: Path) -> None:
    doubled = b"N" + b"".join(b"q\x00h\x00\x86" for _ in range(100))
    assert_refused(archive(tmp_path / "x.ot", b"\x80\x02}(" + doubled + b"Nu."), "no module")
    path = archive(tmp_path / "y.ot", MODULE + _text("a") + doubled + tensor_pickle("b") + END)
    assert list(read_checkpoint(path).tensors) == ["b"]


def test_modules_within_modules_without_end_take_no_time(tmp_path: Path) -> None:
    empty = _global("__torch__", "Module") + b")\x81"
    circle = b"\x80\x02" + empty + b"q\x00}(" + _text("a") + b"h\x00ub."
    assert not read_checkpoint(archive(tmp_path / "x.ot", circle)).tensors
    level = b"q\x00" + empty + b"}(" + _text("a") + b"h\x00" + _text("b") + b"h\x00ub"
    doubling = b"\x80\x02" + empty + b"}b" + level * 60 + b"."
    assert not read_checkpoint(archive(tmp_path / "y.ot", doubling)).tensors


@pytest.mark.parametrize("kind", ["pickle", "storage"])
def test_members_that_unpack_to_much_are_refused(tmp_path: Path, kind: str) -> None:
    zeros = bytes(2**25)
    path = tmp_path / "x.ot"
    if kind == "pickle":
        archive(path, zeros, compression=zipfile.ZIP_DEFLATED)
        assert_refused(path, "larger than any real one")
    else:
        pickled = MODULE + tensor_pickle() + END
        archive(path, pickled, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
        assert_refused(path, "compressed")


@pytest.mark.parametrize(
    "change",
    [
        {"size": (4,)},
        {"offset": 1},
        {"stride": (2,)},
        {"size": (2, 3), "stride": (3, 1)},
        {"numel": 4, "size": (4,)},
        {"numel": 2, "size": (3,)},
        {"offset": -1},
        {"size": (-1,)},
        {"stride": (-1,)},
        {"numel": -3},
        {"size": (3, 1)},
        {"size": (2**62, 2**62), "stride": (0, 0)},
        {"size": (1,) * 200, "stride": (1,) * 200},
        {"size": (0,), "offset": 4},
        {"storage": "DoubleStorage", "size": (2,)},
        {"key": "1"},
        {"key": "../data.pkl"},
    ],
    ids=str,
)
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    assert_refused(archive(tmp_path / "x.ot", MODULE + tensor_pickle(**change) + END))


def test_names_that_collide_after_decoding_are_refused(tmp_path: Path) -> None:
    pickled = MODULE + tensor_pickle("a|b") + tensor_pickle("a.b") + END
    assert_refused(archive(tmp_path / "x.ot", pickled), "two tensors are called a.b")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ot", MODULE + tensor_pickle() + END)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x/data/0", bytes(12))
    assert_refused(path, "one name")


def test_big_endian_archives_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ot", MODULE + tensor_pickle() + END)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/byteorder", b"big")
    assert_refused(path, "big-endian")


# ----------------------------------------------------------------------------- damaged in transit


def samples(folder: Path) -> list[bytes]:
    path = folder / "sample.safetensors"
    write_checkpoint(path, {"a": torch.randn(3, 4), "b.c": torch.ones(5).half()}, {"k": "v"})
    ot = [DATA / "tch" / "small.ot", DATA / "ocaml-torch" / "mixed.ot"]
    return [file.read_bytes() for file in (*ot, path)]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for data in samples(tmp_path):
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert_refused(path)


def read_or_refuse(path: Path) -> int:
    """Whether the file could be read. Anything but tensors or WeightsError is a failed test."""
    try:
        tensors = read_checkpoint(path).tensors
    except WeightsError as error:
        assert "\n" not in str(error)
        return 0
    for tensor in tensors.values():
        if tensor.numel() < 10**6:
            tensor.double().sum()  # touches the memory
    return 1


def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "flipped"
    outcomes = []
    for data in samples(tmp_path):
        for _ in range(500):
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 3))):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            path.write_bytes(flipped)
            outcomes.append(read_or_refuse(path))
    assert 0 < sum(outcomes) < len(outcomes)


def test_flipped_bytes_in_the_pickle_are_refused_or_harmless(tmp_path: Path) -> None:
    """As above, but with a right checksum, so that the pickle machine gets to see them."""
    rng = random.Random(0)
    with zipfile.ZipFile(DATA / "ocaml-torch" / "mixed.ot") as file:
        good = {name.removeprefix("mixed/"): file.read(name) for name in file.namelist()}
    storages = {n.removeprefix("data/"): d for n, d in good.items() if n.startswith("data/")}
    outcomes = []
    for _ in range(1000):
        flipped = bytearray(good["data.pkl"])
        for _ in range(rng.choice((1, 1, 2))):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        outcomes.append(read_or_refuse(archive(tmp_path / "x", bytes(flipped), storages)))
    assert 0 < sum(outcomes) < len(outcomes)


def test_the_reader_never_imports_what_a_pickle_names(tmp_path: Path) -> None:
    """A script class may have any name below __torch__; it is never looked up."""
    body = MODULE.replace(b"__torch__\n", b"__torch__.os.system\n") + tensor_pickle() + END
    path = archive(tmp_path / "x.ot", body)
    assert read_checkpoint(path).tensors["a"].tolist() == [1, 2, 3]
    with pytest.raises(ModuleNotFoundError):
        pickle.load(io.BytesIO(body))
