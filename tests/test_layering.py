"""Who imports whom, read from the source: left never imports right."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sdpy

SOURCE = Path(sdpy.__file__).parent

# From the bottom up. A module imports from lower levels and from itself, never sideways.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("__init__",),  # the version; what else it offers is imported when it is asked for
    ("errors", "foreign"),  # and what users of other programs call the options
    ("options",),  # how options are declared, without Typer and without torch
    ("components",),  # the table of components, without torch
    ("files", "schema"),  # opening and atomic writing; what JSON files may say
    ("models", "schedulers", "checkpoints", "images"),
    ("text", "metadata"),
    ("zoo",),
    ("optimizations",),
    ("runtime",),
    ("pipelines",),
    ("benchmark",),
    ("jobs", "gallery"),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

# Libraries that only some may import; None is everywhere in the package.
ONLY_IN: dict[str, set[str] | None] = {
    "typer": {"cli"},
    "rich": {"cli"},
    "click": set(),
    "PIL": {"images"},  # and in pipelines, for types
    "ftfy": {"text"},
    "regex": {"text", "checkpoints"},
    "cv2": {"images"},  # where it is asked for: it is an extra
    "safetensors": {"checkpoints"},
    "sd_parsers": {"metadata"},  # where it is asked for: it is an extra
    "huggingface_hub": {"zoo"},
    "diffusers": set(),
    "transformers": set(),
    "dynamicprompts": {"jobs"},  # where it is asked for: it is an extra
    "ray": {"jobs"},  # likewise
    "yaml": {"jobs"},  # where it is there
    "numpy": None,
    "torch": None,
}


@dataclass(frozen=True)
class Import:
    """``module`` (dotted) is imported in ``file``, in its ``line``."""

    file: str
    line: int
    module: str
    only_for_types: bool

    @property
    def importer(self) -> str:
        return unit(self.file)


def unit(file: str) -> str:
    """The module or package directly below ``sdpy`` that a file belongs to."""
    return file.split("/")[0].removesuffix(".py")


def imports(file: str, text: str) -> Iterator[Import]:
    tree = ast.parse(text)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        for child in block.body
        for node in ast.walk(child)
    }
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            module = node.module or ""
            # ``from sdpy import pipelines`` imports a module, ``from sdpy import __version__`` not.
            within = [f"{module}.{alias.name}" for alias in node.names]
            modules = within if module == "sdpy" else [module]
        for module in modules:
            yield Import(file, node.lineno, module, id(node) in guarded)


def sources() -> dict[str, str]:
    return {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*.py"))
    }


def all_imports() -> list[Import]:
    return [found for file, text in sources().items() for found in imports(file, text)]


def fault(found: Import) -> str | None:
    """What is wrong with an import; None for nothing."""
    top, _, rest = found.module.partition(".")
    if top == "sdpy":
        imported = rest.split(".")[0]
        if imported == found.importer or imported == "__version__":
            return None
        if found.importer == "__init__" and found.only_for_types:
            return None
        if LEVEL_OF[imported] >= LEVEL_OF[found.importer]:
            return f"{found.importer} must not import {imported}"
        return None
    if top in sys.stdlib_module_names:
        return None
    if top == "PIL" and found.importer == "pipelines" and found.only_for_types:
        return None
    allowed = ONLY_IN.get(top, set())
    if allowed is not None and found.importer not in allowed:
        return f"{found.importer} must not import {top}"
    return None


def test_every_module_has_a_level() -> None:
    assert {unit(file) for file in sources()} <= set(LEVEL_OF)


def test_left_never_imports_right() -> None:
    found = all_imports()
    assert len(found) > 100
    faults = {f"{one.file}:{one.line}": fault(one) for one in found}
    assert {place: wrong for place, wrong in faults.items() if wrong is not None} == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("images/frame.py", "from sdpy.pipelines.request import Request"),
        ("images/frame.py", "import sdpy.models.unet"),
        ("models/unet.py", "from sdpy.schedulers import Scheduler"),
        ("text/prompts.py", "def f():\n    from sdpy.zoo.variants import SD15"),
        ("errors.py", "from sdpy.files import atomic_write"),
        ("pipelines/generate.py", "import typer"),
        ("pipelines/generate.py", "from rich.progress import Progress"),
        ("pipelines/generate.py", "from PIL import Image"),
        ("cli/images.py", "if TYPE_CHECKING:\n    from PIL import Image"),
        ("cli/images.py", "import diffusers.models"),
        ("models/clip.py", "import transformers"),
        ("models/clip.py", "import pandas"),
        ("pipelines/generate.py", "if TYPE_CHECKING:\n    from sdpy.cli.app import run"),
        ("__init__.py", "from sdpy.pipelines import generate"),
    ],
)
def test_a_forbidden_import_is_found(file: str, text: str) -> None:
    assert [fault(one) for one in imports(file, text)] != [None]


def test_only_the_command_line_prints() -> None:
    printers = {
        file
        for file, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "input")
        )
        or (
            isinstance(node, ast.Attribute)
            and node.attr in ("stdout", "stderr")
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
        )
    }
    assert {"cli/images.py", "cli/display.py"} <= printers
    assert {unit(file) for file in printers} <= {"cli", "__main__"}


def uses(text: str, name: str) -> bool:
    """Whether some source imports, or calls in whatever way, a function of that name."""
    return any(
        (isinstance(node, ast.alias) and node.name.split(".")[-1] == name)
        or (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        for node in ast.walk(ast.parse(text))
    )


def test_only_the_session_loads_weights() -> None:
    """Checkpoints define the function; the scripts, outside of the package, hold to it too."""
    users = {file for file, text in sources().items() if uses(text, "load_weights")}
    assert {file for file in users if unit(file) != "checkpoints"} == {"runtime/loading.py"}
    loaders = {file for file, text in sources().items() if uses(text, "load_model")}
    assert loaders == {"runtime/session.py"}
    scripts = sorted((Path(__file__).parents[1] / "scripts").rglob("*.py"))
    assert len(scripts) > 10
    assert [path for path in scripts if uses(path.read_text("utf-8"), "load_weights")] == []


@pytest.mark.parametrize(
    "text",
    [
        "from sdpy.checkpoints import load_weights",
        "from sdpy.checkpoints import load_weights as load",
        "import sdpy.checkpoints as c\nc.load_weights(model, source)",
        "def f():\n    load_weights(model, source)",
    ],
)
def test_who_loads_weights_is_found(text: str) -> None:
    assert uses(text, "load_weights")
    assert not uses(text.replace("load_weights", "check_weights"), "load_weights")
