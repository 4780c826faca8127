"""The command as a process of its own: streams, terminals, signals, imports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdpy import __version__
from support.processes import PATIENCE, clean_environment, finish, read_until, start, tiny

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and terminals of POSIX")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    defaults = {"capture_output": True, "text": True, "timeout": PATIENCE, "check": False}
    environment = options.pop("env", clean_environment())
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        **{**defaults, **options},  # type: ignore[call-overload]
    )


def test_as_a_module() -> None:
    result = python("-m", "sdpy", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"sdpy {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["generate", "--help"], ["inpaint"], ["nope"]]
)
def test_answers_without_heavy_imports(arguments: list[str]) -> None:
    code = (
        "import sys; from sdpy.cli.app import run; run(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'PIL', 'ftfy', 'safetensors'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    result = python("-c", code, *arguments)
    assert result.returncode == 0, result.stderr


def test_no_weights_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    result = python("-m", "sdpy", "generate", "a lighthouse", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    names = ("pytorch_model.ot", "unet.ot", "vae.ot", "bpe_simple_vocab_16e6.txt")
    for name in names:
        assert str(Path("data") / name) in line
    assert "data/README.md" in line
    assert "--model demo" in line
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_plain_lines_without_a_terminal(tiny_data: Path, tmp_path: Path) -> None:
    """And the bare paths on stdout, even one that is no text."""
    command = tiny(tiny_data, "generate", "x", "--n-steps", "3", "--num-samples", "2", "-o")
    result = subprocess.run(
        [*map(os.fsencode, command), b"\xff.png"],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=clean_environment(),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == b"\xff.1.png\n\xff.2.png\n"
    lines = result.stderr.decode().split("\n")
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines] == [
        "seeds: 32 to 33",
        "prompt: 1 of 75 tokens",
        "images 1 to 2 of 2: step 3 of 3, N s",
        "",
    ]


def read_terminal(descriptor: int) -> str:
    shown = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            piece = b""
        if not piece:
            return shown.decode()
        shown += piece


@POSIX
def test_a_bar_on_a_terminal_and_the_path_on_stdout(tiny_data: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        tiny(tiny_data, "generate", "x", "--n-steps", "4", "--num-samples", "2"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=clean_environment(TERM="xterm", COLUMNS="100"),
    )
    os.close(theirs)
    shown = read_terminal(ours)
    out, _ = process.communicate(timeout=PATIENCE)
    os.close(ours)
    assert process.returncode == 0
    assert out == "sd_final.1.png\nsd_final.2.png\n"
    assert "sd_final" not in shown
    assert "images 1 to 2 of 2" in shown
    assert "4/4" in shown
    assert re.search(r"\d:\d\d:\d\d.*(\d:\d\d:\d\d|-:--:--)", shown)  # gone, and left


@POSIX
def test_ctrl_c_is_one_line_and_leaves_no_part_of_an_image(tiny_data: Path, tmp_path: Path) -> None:
    command = tiny(tiny_data, "generate", "x", "--n-steps", "1", "--num-samples", "5000")
    process = start(command, tmp_path)
    assert read_until(process.stdout, "png") == ["sd_final.1.png"]
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    *progress, last = err
    assert last == "sdpy: interrupted"
    assert all(line.startswith(("seed", "prompt: ", "image")) for line in progress)
    # One more may be whole whose path was not printed any more.
    names = [f"sd_final.{k + 1}.png" for k in range(1 + len(out))]
    left = set(os.listdir(tmp_path))
    assert left - set(names) <= {f"sd_final.{len(names) + 1}.png"}
    assert set(names) <= left
    for path in tmp_path.iterdir():
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


@POSIX
def test_a_reader_that_goes_away_ends_the_run_without_a_word(
    tiny_data: Path, tmp_path: Path
) -> None:
    command = tiny(tiny_data, "generate", "x", "--n-steps", "1", "--num-samples", "5000")
    with start(command, tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert read_until(process.stdout, "png") == ["sd_final.1.png"]
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 1
    assert all(line.startswith(("seed", "prompt: ", "image")) for line in err.splitlines()), err


@POSIX
def test_help_into_a_closed_pipe() -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'sdpy', '--help'], "
    code += "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); "
    code += "err = p.stderr.read(); p.wait(); sys.exit(err.decode() or 0)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_printed(shell: str) -> None:
    # Typer would otherwise look for a shell among the processes that run this test.
    env = clean_environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    result = python("-m", "sdpy", "--show-completion", shell, env=env)
    assert result.returncode == 0, result.stderr
    assert "_SDPY_COMPLETE" in result.stdout


def test_completion_completes() -> None:
    words = {"_SDPY_COMPLETE": "complete_bash", "COMP_WORDS": "sdpy gen", "COMP_CWORD": "1"}
    result = python("-m", "sdpy", env=clean_environment(**words))
    assert result.stdout.split() == ["generate"]
    assert result.stderr == ""


def test_prompts_and_images_go_through_pipes(tiny_data: Path, tmp_path: Path) -> None:
    fast = ("--steps", "1", "--guidance-scale", "1")

    def made(*words: str, given: bytes) -> bytes:
        result = subprocess.run(
            tiny(tiny_data, *words, *fast, "-o", "-"),
            input=given,
            capture_output=True,
            cwd=tmp_path,
            env=clean_environment(),
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = made("generate", "-", given=b"a cat\n")
    assert first.startswith(b"\x89PNG") and b"a cat\nSteps: 1" in first
    assert made("img2img", "-", given=first).startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == []
