"""The command registry, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from typing import Annotated, Any

import typer

from sdpy import __version__
from sdpy.cli.batch import batch
from sdpy.cli.bench import bench
from sdpy.cli.convert import convert
from sdpy.cli.download import download
from sdpy.cli.generate import generate
from sdpy.cli.grid import grid
from sdpy.cli.img2img import img2img
from sdpy.cli.info import info
from sdpy.cli.inpaint import inpaint
from sdpy.cli.inspect import inspect
from sdpy.cli.options import flatten
from sdpy.cli.replay import replay
from sdpy.cli.schedulers import schedulers
from sdpy.cli.terminal import tell
from sdpy.errors import SdpyError, ShortageError, is_shortage
from sdpy.foreign import foreign_hint

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "img2img": img2img,
    "inpaint": inpaint,
    "batch": batch,
    "info": info,
    "replay": replay,
    "grid": grid,
    "schedulers": schedulers,
    "download": download,
    "inspect": inspect,
    "convert": convert,
    "bench": bench,
}

INTERRUPTED = 130

app = typer.Typer(
    name="sdpy",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def _help_of(command: Callable[..., None]) -> str:
    """A command's docstring for a terminal of any width: lines of a paragraph are joined.

    Paragraphs that begin with ``\\b`` keep their lines.
    """
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(
        text if text.startswith("\b") else text.replace("\n", " ") for text in paragraphs
    )


for name, command in COMMANDS.items():
    app.command(name, help=_help_of(command))(flatten(command))


def _print_version(value: bool) -> None:
    if value:
        print(f"sdpy {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Stable Diffusion on the command line.

    Generate an image of a prompt, change an image, or repaint a part of one. Try:
    [bold]sdpy generate "lighthouse at dark" --model demo[/bold]
    """


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Look for garbage rarely: imports and models are many objects that all stay."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@_little_garbage()
def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    An error that sdpy or Typer raises on purpose becomes one line on stderr. So does any other;
    the environment variable SDPY_DEBUG=1 shows its traceback. Where nobody reads the output any
    more, Typer leaves the process with exit code 1.

    Args:
        arguments: without the program's name; None for those of this process.
    """
    try:
        result: Any = app(arguments, prog_name="sdpy", standalone_mode=False)
        if result == INTERRUPTED:  # Typer's answer to Ctrl-C
            return _fail("interrupted", INTERRUPTED)
        return result if isinstance(result, int) else 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        where = "sdpy" if context is None else context.command_path
        message = error.format_message().rstrip(".")
        if not message:  # no arguments at all: Typer has printed the help
            return error.exit_code
        hint = _hint_at_option(getattr(error, "option_name", None), context)
        return _fail(f"{message}; {hint}'{where} --help' explains", error.exit_code)
    except SdpyError as error:
        if os.environ.get("SDPY_DEBUG"):
            raise
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if os.environ.get("SDPY_DEBUG"):
            raise
        if is_shortage(error):
            return _fail(
                "out of memory: use a smaller --width and --height, --memory low, or --cpu for "
                "models that do not fit on the GPU",
                ShortageError.exit_code,
            )
        if isinstance(error, OSError):
            return _fail(f"{error} (SDPY_DEBUG=1 shows where)", SdpyError.exit_code)
        return _fail(
            f"internal error, please report it: {type(error).__name__}: {error} "
            "(SDPY_DEBUG=1 shows where)",
            SdpyError.exit_code,
        )


def _hint_at_option(name: str | None, context: Any) -> str:
    """What to type in the place of an option that there is not, for the middle of a message."""
    if name is None:
        return ""
    ours = foreign_hint(name)
    if ours is not None:
        return f"use {ours}; "
    if not name.startswith("--"):
        return "text that begins with a dash comes after --, as in: sdpy generate -- '-5 degrees'; "
    parent = None if context is None else context.parent
    commands = {} if parent is None else parent.command.commands
    having = [
        f"sdpy {other}"
        for other, command in commands.items()
        if any(name in (*one.opts, *one.secondary_opts) for one in command.params)
    ]
    return f"it is an option of {', '.join(having)}; " if having else ""


def _fail(message: str, exit_code: int) -> int:
    tell(f"sdpy: {' '.join(message.split())}")
    return exit_code
