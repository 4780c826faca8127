"""Formats are told by content; whatever is no weights file is named for what it is."""

import gc
import gzip
import io
import json
import os
import pickle
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import FORMATS, fingerprint, read_checkpoint, write_checkpoint
from sdpy.errors import UsageError, WeightsError


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def numpy_saved() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, b"hello")
    return buffer.getvalue()


def image_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3438167540\n"
FOREIGN = {
    "git-lfs": (LFS, "git-lfs pointer"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "html with a mark": (b"\xef\xbb\xbf<HTML><body>Sign in</body></HTML>", "HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML page"),
    "json": (json.dumps({"error": "Repository not found"}).encode(), "JSON"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    "pickle": (pickle.dumps({"weight": [1.0]}), "Python pickle"),
    "npy": (numpy_saved(), "NumPy array"),
    "zip": (zipped("readme.txt"), "zip archive without weights"),
    "zip cut short": (zipped("readme.txt")[:40], "its end is missing"),
    "empty zip": (zipped("x")[-22:], ""),
    "gzip": (gzip.compress(b"x" * 100), "gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "png": (image_bytes("PNG"), "an image"),
    "jpeg": (image_bytes("JPEG"), "an image"),
    "zeros": (bytes(10_000), "zeros"),
    "noise": (bytes(range(1, 256)) * 10, "not a weights file"),
    "one byte": (b"P", "not a weights file"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_foreign_files_are_named(tmp_path: Path, name: str, suffix: str) -> None:
    content, expected = FOREIGN[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.ot")
    assert "holds no weights" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert "is the folder of a whole model" in refusal(tmp_path)
    (tmp_path / "empty.ot").touch()
    assert "is empty" in refusal(tmp_path / "empty.ot")
    assert "cannot read" in refusal(tmp_path / "empty.ot" / "within.ot")
    assert "cannot read" in refusal(tmp_path / ("n" * 5000))
    (tmp_path / "dangling.ot").symlink_to(tmp_path / "gone.ot")
    assert "does not exist" in refusal(tmp_path / "dangling.ot")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ot")
    assert "not a plain file" in refusal(tmp_path / "pipe.ot")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.ot"
    write_checkpoint(path, {"a": torch.ones(1)})
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_permission_denied_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.ot"
    path.touch()

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("form", FORMATS)
def test_the_content_decides_not_the_name(tmp_path: Path, form: str) -> None:
    written = tmp_path / f"x{FORMATS[form].suffixes[0]}"
    write_checkpoint(written, {"a.b": torch.ones(2)})
    for name in ("weights", "x.dat", "x.safetensors.ot", "x.ot.safetensors"):
        renamed = tmp_path / name
        renamed.write_bytes(written.read_bytes())
        checkpoint = read_checkpoint(str(renamed))
        assert checkpoint.format == form
        assert checkpoint.path == renamed
        assert checkpoint.tensors["a.b"].tolist() == [1, 1]


@pytest.mark.parametrize("form", FORMATS)
def test_registry_names_agree(form: str) -> None:
    assert FORMATS[form].name == form


def test_an_unknown_extension_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.ot, \.safetensors, \.npz, \.bin"):
        write_checkpoint(tmp_path / "x.dat", {"a": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


# --- files that are open -------------------------------------------------------------------------


def write_state(path: Path, value: float) -> None:
    write_checkpoint(path, {"x": torch.full((3,), value)})


@pytest.mark.parametrize("suffix", [".safetensors", ".ot", ".npz", ".pt"])
def test_an_open_file_is_not_opened_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_state(path, 1)
    first = read_checkpoint(path)
    assert read_checkpoint(str(path)) is first
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None  # nobody holds it


def test_a_file_that_is_renamed_over_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_state(path, 1)
    before, known = read_checkpoint(path), fingerprint(path)
    write_state(tmp_path / "y.safetensors", 2)
    os.utime(tmp_path / "y.safetensors", ns=(known[0].mtime_ns, known[0].mtime_ns))
    os.replace(tmp_path / "y.safetensors", path)
    assert fingerprint(path) != known  # though it is as long and as old
    after = read_checkpoint(path)
    assert after is not before
    assert after.tensors["x"].tolist() == [2, 2, 2]
    assert before.tensors["x"].tolist() == [1, 1, 1]


def test_a_file_that_is_written_over_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_state(path, 1)
    before, known = read_checkpoint(path), fingerprint(path)
    write_state(tmp_path / "y.safetensors", 2)
    with path.open("r+b") as file:
        file.write((tmp_path / "y.safetensors").read_bytes())
    os.utime(path, ns=(known[0].mtime_ns + 1, known[0].mtime_ns + 1))
    assert fingerprint(path) != known
    after = read_checkpoint(path)
    assert after is not before
    assert after.tensors["x"].tolist() == [2, 2, 2]


def test_a_fingerprint_is_of_all_files_concerned(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    names = [f"diffusion_pytorch_model-{i}.safetensors" for i in range(2)]
    for i, name in enumerate(names):
        write_checkpoint(folder / name, {str(i): torch.zeros(i + 1)})
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}}))
    known = fingerprint(folder)
    assert [Path(state.path) for state in known] == [index, *(folder / name for name in names)]
    assert [state.size for state in known] == [Path(s.path).stat().st_size for s in known]
    assert fingerprint(index) == known
    before = read_checkpoint(folder)
    assert read_checkpoint(index) is before
    write_checkpoint(folder / names[1], {"1": torch.ones(2)})
    assert fingerprint(folder) != known
    assert read_checkpoint(folder).tensors["1"].tolist() == [1, 1]
    assert before.tensors["1"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["missing.safetensors", "a\0b"])
def test_a_missing_file_has_no_fingerprint(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError):
        fingerprint(tmp_path / name)
