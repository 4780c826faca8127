"""Streams that are closed or of another encoding, signals, and what a terminal would obey."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdpy.cli.app import COMMANDS
from sdpy.cli.options import flatten
from sdpy.cli.terminal import visible
from sdpy.foreign import HINTS
from support.processes import PATIENCE, RUN_TINY, finish, read_until, start, tiny

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX")
FAST = ("--steps", "1")


def shell(
    command: str, folder: Path, data: Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A shell's command line, in which ``SDPY`` stands for the command with the tiny models."""
    own = f"{shlex.quote(sys.executable)} {shlex.quote(str(RUN_TINY))}"
    line = command.replace("DATA", shlex.quote(str(data))).replace("SDPY", own)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **environment},
    )


@POSIX
@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tiny_data: Path, tmp_path: Path, redirection: str) -> None:
    made = shell(f"SDPY generate x --data DATA --steps 1 {redirection}", tmp_path, tiny_data)
    assert made.returncode == 0 and (tmp_path / "sd_final.png").exists()
    assert made.stdout == (b"sd_final.png\n" if redirection == "2>&-" else b"")


@POSIX
def test_an_error_does_not_go_to_stdout_where_stderr_is_closed(
    tiny_data: Path, tmp_path: Path
) -> None:
    made = shell("SDPY generate x --data DATA --steps 0 2>&-", tmp_path, tiny_data)
    assert (made.returncode, made.stdout) == (2, b"")


@POSIX
def test_names_are_printed_as_they_are_on_disk(tiny_data: Path, tmp_path: Path) -> None:
    """Whatever the encoding, and where they are no text at all."""
    command = (
        "SDPY generate 'x (cat:1.2)' --data DATA --steps 1 --num-samples 2 -o 'ü.png' && "
        "SDPY generate x --data DATA --steps 1 -o $'\\xff.png'"
    )
    made = shell(command, tmp_path, tiny_data, PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    names = ["ü.1.png".encode(), "ü.2.png".encode(), b"\xff.png"]
    assert made.returncode == 0, made.stderr
    assert made.stdout.split(b"\n")[:-1] == names
    assert {os.fsencode(name) for name in os.listdir(tmp_path)} == set(names)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_ctrl_c_does(
    tiny_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tiny(tiny_data, "generate", "x", *FAST, "--num-samples", "5000"), tmp_path)
    assert read_until(process.stdout, "png") == ["sd_final.1.png"]
    process.send_signal(number)
    _, err = finish(process, 128 + number)
    assert err[-1] == "sdpy: interrupted"
    assert not [name for name in os.listdir(tmp_path) if not name.startswith("sd_final.")]


@POSIX
def test_an_ignored_signal_stays_ignored(tiny_data: Path, tmp_path: Path) -> None:
    command = "trap '' HUP; SDPY generate x --data DATA --steps 1 & kill -HUP $!; wait $!"
    assert shell(command, tmp_path, tiny_data).returncode == 0


def test_temporary_files_of_the_benchmark_go_with_a_signal(
    tmp_path: Path, monkeypatch: Any
) -> None:
    code = (
        "import os, signal, tempfile\n"
        "from sdpy.cli.terminal import end_on_signals\n"
        "end_on_signals()\n"
        "with tempfile.TemporaryDirectory(prefix='sdpy-bench-') as folder:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert not list(tmp_path.iterdir())


# --- what a terminal would obey ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 城 🏰", "plain ü 城 🏰"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("x\u202egnp.exe", "x\\u202egnp.exe"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_control_character_of_an_argument_is_printed(sdpy: Any) -> None:
    result = sdpy("generate", "a (c\x1b[31mat:1.2)", *FAST, "-n", "[b:\x07:1]")
    assert result.code == 0
    assert "\x1b" not in result.err and "\x07" not in result.err
    result = sdpy("generate", "x", *FAST, "--lora", "a\x1b[2Jb")
    assert result.code == 3 and "\x1b" not in result.err and "a\\x1b[2Jb" in result.err


# --- what others call the options --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-5 degrees"], "comes after --, as in: sdpy generate -- '-5 degrees'"),
        (["x", "--cfg-scale", "3"], "use --guidance-scale"),
        (["x", "--n_iter", "3"], "use --num-samples"),
        (["x", "--sampler", "ddim"], "use --scheduler"),
        (["x", "--num-inference-steps", "3"], "use --steps"),
        (["x", "--lowvram"], "use --memory"),
    ],
)
def test_a_hint_at_the_option_that_is_meant(sdpy: Any, arguments: list[str], hint: str) -> None:
    result = sdpy("generate", *arguments)
    assert result.code == 2 and hint in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ["batch", "--step-animation"],
            "of sdpy generate, sdpy img2img, sdpy inpaint, sdpy replay",
        ),
        (["generate", "x", "--only-masked"], "it is an option of sdpy inpaint, sdpy batch"),
    ],
)
def test_a_hint_at_the_command_that_has_the_option(
    sdpy: Any, arguments: list[str], hint: str
) -> None:
    result = sdpy(*arguments)
    assert result.code == 2 and hint in result.err and len(result.err.splitlines()) == 1


def test_hints_name_options_that_there_are() -> None:
    import inspect

    flags: set[str] = set()
    for name in ("generate", "inpaint", "img2img"):
        for parameter in inspect.signature(flatten(COMMANDS[name])).parameters.values():
            flags.add(f"--{parameter.name}")  # where the command names no other
            for one in getattr(parameter.annotation, "__metadata__", ()):
                for flag in (str(one.default), *(one.param_decls or ())):
                    flags.update(flag.split("/"))
    assert {hint for hint in HINTS.values() if hint.startswith("--")} <= flags
    assert not {f"--{name}" for name in HINTS} & flags


def test_a_keyword_of_another_program(tiny_data: Path) -> None:
    import sdpy as package
    from sdpy.errors import UsageError

    with pytest.raises(UsageError, match="unknown option 'cfg_scale': use guidance_scale"):
        package.load("demo").generate("x", cfg_scale=3)


# --- absurd numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sliced-attention-size", "9" * 20],
        ["--memory", "9" * 30 + "T"],
        ["--memory", "9" * 400],
        ["--guidance-scale", "1e30"],
        ["--guidance-scale=-1e30"],
        ["--steps", "9" * 20],
        ["--deepcache", "9" * 20],
        ["--clip-skip", "9" * 20],
        ["--threads", "9" * 20],
        ["--seed", "9" * 30],
    ],
)
def test_absurd_numbers_are_refused(sdpy: Any, arguments: list[str]) -> None:
    result = sdpy("generate", "x", *arguments)
    assert result.code == 2 and len(result.err.splitlines()) == 1


def test_a_text_stream_that_is_none(monkeypatch: Any) -> None:
    """As where another program runs the command line in its own process."""
    from sdpy.cli import terminal

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    terminal.answer("a\x1bb")
    assert sys.stdout.getvalue() == "a\x1bb\n"  # type: ignore[attr-defined]
