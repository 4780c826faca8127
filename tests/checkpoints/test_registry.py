"""Formats are told by content; whatever is no weights file is named for what it is."""

import gzip
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import FORMATS, read_checkpoint, write_checkpoint
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


def picture(kind: str) -> bytes:
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
    "png": (picture("PNG"), "picture"),
    "jpeg": (picture("JPEG"), "picture"),
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

    monkeypatch.setattr(Path, "open", deny)
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
