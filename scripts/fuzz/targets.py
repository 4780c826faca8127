"""What is fuzzed: a function of bytes for each kind of input that comes from elsewhere.

A target returns or raises an `SdpyError`. Anything else is a find: another exception, more than
ten seconds, more than a gigabyte.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sdpy.checkpoints import Lora, check_loras, read_checkpoint, read_textual_inversions
from sdpy.components import COMPONENTS
from sdpy.errors import SdpyError
from sdpy.images.files import read_texts
from sdpy.images.reading import load_image
from sdpy.jobs.readers import FORMATS, read_jobs
from sdpy.text.prompts import tokenize_prompt
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.classes import make_model, read_config
from sdpy.zoo.hub.catalog import find_hub_model
from sdpy.zoo.hub.client import Hub
from sdpy.zoo.hub.plan import plan_download
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.schemas import check_config, check_scheduler
from sdpy.zoo.variants import DEMO

_IN_MEMORY = Path("/dev/shm")


@cache
def _folder() -> Path:
    """Where the input lies as a file: in memory, where the system has such a folder."""
    parent = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="sdpy-fuzz-", dir=parent))


@contextmanager
def _file(data: bytes, name: str) -> Iterator[Path]:
    path = _folder() / name
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _attempt(work: Callable[[], object]) -> None:
    """Do some work that sdpy may refuse."""
    try:
        work()
    except SdpyError as error:
        message = str(error)
        assert message and "\n" not in message, f"an error of several lines: {message!r}"


def weights(data: bytes) -> None:
    """A weights file of any format: looked at, read as an embedding and as a LoRA."""
    with _file(data, "input") as path:
        _attempt(lambda: inspect_weights(path))
        _attempt(lambda: [tensor.sum() for tensor in read_checkpoint(path).tensors.values()])
        _attempt(lambda: read_textual_inversions(path))
        _attempt(lambda: check_loras([Lora(path, 1.0)], _models()))
    with _file(data, "input.safetensors.index.json") as path:
        _attempt(lambda: inspect_weights(path))


@cache
def _models() -> dict[str, Any]:
    return {name: make_model(name, DEMO.configs[name]) for name in ("unet", "text_encoder")}


def configurations(data: bytes) -> None:
    """The configuration file of a component or a scheduler; the first byte says of which."""
    kinds = ("scheduler", *COMPONENTS)
    kind = kinds[data[0] % len(kinds)] if data else kinds[0]
    try:
        found = json.loads(data[1:])
    except (ValueError, RecursionError):
        return

    def check() -> None:
        if kind == "scheduler":
            check_scheduler(found, "input.json")
            return
        told = check_config(kind, found, "input.json").values
        if kind in DEMO.configs:
            make_model(kind, read_config(kind, _outline(kind), told))

    _attempt(check)


@cache
def _outline(component: str) -> dict[str, Any]:
    return make_model(component, DEMO.configs[component]).state_dict()


def vocabularies(data: bytes) -> None:
    """The files of a tokenizer."""
    with _file(data, "merges.txt") as path:
        _attempt(lambda: CLIPTokenizer.from_file(path, DEMO.text_encoder.vocab_size))


def images(data: bytes) -> None:
    """An image file."""
    with _file(data, "input") as path:
        _attempt(lambda: load_image(path))
        _attempt(lambda: read_texts(path))


def jobs(data: bytes) -> None:
    """A file of jobs; the first byte says of which format."""
    name = [*FORMATS][data[0] % len(FORMATS)] if data else "text"
    with _file(data[1:], "input") as path:
        _attempt(lambda: list(read_jobs(str(path), format=name)))


class _Hub(Hub):
    """A hub that answers every question with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("https://hub.example")
        self.answer = answer

    @contextmanager
    def _get(self, url: str, **_: Any) -> Iterator[Any]:
        yield SimpleNamespace(status_code=200, iter_bytes=lambda: iter([self.answer]))


def hubs(data: bytes) -> None:
    """What a hub answers when it is asked what a repository holds."""
    hub = _Hub(data)
    _attempt(lambda: hub.list_files("owner/name"))
    _attempt(lambda: plan_download(hub, find_hub_model("owner/name"), Path("data")))


def prompts(data: bytes) -> None:
    """A prompt, with weights and the like."""
    text = data.decode("utf-8", errors="surrogateescape")
    _attempt(lambda: tokenize_prompt(text, _tokenizer(), DEMO.text_encoder))


@cache
def _tokenizer() -> CLIPTokenizer:
    assert DEMO.bundled is not None
    return CLIPTokenizer.from_file(DEMO.bundled / "merges.txt", DEMO.text_encoder.vocab_size)


@dataclass(frozen=True)
class Target:
    """Something to fuzz: what takes the bytes, and the modules whose branches count."""

    run: Callable[[bytes], None]
    modules: tuple[str, ...]


TARGETS: dict[str, Target] = {
    "weights": Target(
        weights, ("sdpy.checkpoints", "sdpy.zoo", "pickletools", "zipfile", "numpy.lib.format")
    ),
    "configurations": Target(configurations, ("sdpy.schema", "sdpy.zoo", "sdpy.models")),
    "vocabularies": Target(vocabularies, ("sdpy.text", "gzip")),
    "images": Target(images, ("sdpy.images", "PIL")),
    "jobs": Target(jobs, ("sdpy.jobs", "csv", "tomllib", "yaml")),
    "hubs": Target(hubs, ("sdpy.zoo.hub", "json")),
    "prompts": Target(prompts, ("sdpy.text",)),
}


def clean_up() -> None:
    """Remove the folder of the input."""
    if _folder.cache_info().currsize:
        os.rmdir(_folder())
