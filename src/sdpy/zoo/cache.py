"""Models on this machine: in the data folder, or in the cache of the hub's own library.

::

    models--OWNER--NAME/refs/main                 the commit that is the main branch's
    models--OWNER--NAME/snapshots/COMMIT/...      its files, as links
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdpy.errors import WeightsError

SINGLE_FILES = (".safetensors", ".ckpt")
"""Suffixes of files that hold a whole model, in the order in which they are looked for."""

_PREFIX = "models--"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def single_file(folder: Path, name: str) -> Path | None:
    """The file of a folder that is called like a model and holds all of it."""
    files = (folder / (name + suffix) for suffix in SINGLE_FILES)
    return next((file for file in files if os.path.isfile(file)), None)


def is_hub_name(name: str) -> bool:
    """Whether a name could be OWNER/NAME on a hub."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith(".")


def cached_model(name: str, data: Path) -> Path | None:
    """Where the model OWNER/NAME lies on this machine.

    That is in the data folder, where ``sdpy download`` puts it, or in the cache of the hub's
    library, which the environment variables HF_HUB_CACHE and HF_HOME name.
    """
    if not is_hub_name(name):
        return None
    downloaded = data / name.partition("/")[2]
    if os.path.isdir(downloaded):
        return downloaded
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    folder = Path(os.path.expanduser(cache)) / (_PREFIX + name.replace("/", "--"))
    return folder if os.path.isdir(folder) else None


def snapshot_in(folder: Path) -> Path:
    """The files of a model in the cache; any other folder is returned as it is.

    Raises:
        WeightsError: there are no files.
    """
    snapshots = folder / "snapshots"
    if not folder.name.startswith(_PREFIX) or not snapshots.is_dir():
        return folder
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        commit = ""
    if commit and "/" not in commit and (snapshots / commit).is_dir():
        return snapshots / commit
    found = sorted((one for one in snapshots.iterdir() if one.is_dir()), key=_changed)
    if not found:
        raise WeightsError(f"{snapshots} is empty; download the model again")
    return found[-1]


def _changed(path: Path) -> float:
    return path.stat().st_mtime
