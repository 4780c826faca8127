"""The command ``sdpy download``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sdpy.checkpoints import write_checkpoint
from sdpy.cli import display
from sdpy.cli.app import run
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.config_files import unet_json
from sdpy.zoo.hub import fetch
from sdpy.zoo.hub.catalog import MODELS
from sdpy.zoo.variants import VARIANTS
from support.hub_contents import INPAINTING, LIGHTNING, MERGES, SD15, SD21, SDXL, pipeline
from support.loopback import Break, LoopbackHub
from support.tiny import MERGES as TINY_MERGES
from support.tiny import TINY, tiny_weights
from support.tiny_xl import TINY_XL, tiny_xl_model, write_tiny_xl

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def download(hub: LoopbackHub, *arguments: str) -> int:
    return run(["download", *arguments, "--endpoint", hub.address])


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_sd15(hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")

    assert download(hub, "sd15") == 0

    data = tmp_path / "data"
    assert files_in(data) == {
        "bpe_simple_vocab_16e6.txt",
        "pytorch_model.safetensors",
        "unet.safetensors",
        "vae.safetensors",
    }
    assert (data / "unet.safetensors").read_bytes() == files[UNET]
    printed = capsys.readouterr()
    assert printed.out == 'sdpy generate "lighthouse at dark"\n'
    assert "downloading data/unet.safetensors: 40.0 kB of 40.0 kB" in printed.err


def test_the_vocabulary_is_one(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    download(hub, "sd15", "--quiet")

    vocabulary = tmp_path / "data" / "bpe_simple_vocab_16e6.txt"
    assert vocabulary.read_bytes() == MERGES
    tokenizer = CLIPTokenizer.from_file(vocabulary, vocab_size=512 + 2 + 2)
    assert tokenizer.decode(tokenizer.encode("in")) == "in"


def test_again_fetches_nothing(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.repositories[INPAINTING] = pipeline("inpaint")
    download(hub, "sd15")
    hub.requests.clear()

    assert download(hub, "sd15") == 0
    assert [request.path for request in hub.requests if "/resolve/" in request.path] == []
    capsys.readouterr()

    assert download(hub, "sd15-inpaint", "sd15") == 0
    fetched = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert len(fetched) == 1 and fetched[0].startswith(f"/{INPAINTING}/")
    assert (tmp_path / "data" / "unet-inpaint.safetensors").is_file()
    usages = capsys.readouterr().out.splitlines()
    assert usages == [
        "sdpy inpaint IMAGE.jpg MASK.png",
        'sdpy generate "lighthouse at dark"',
    ]


def test_what_was_fetched_generates_images(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    command = ["generate", "lighthouse at dark", "--steps", "2", "--cpu", "all"]
    assert run(command) == 3
    assert "`sdpy download sd15` downloads them" in capsys.readouterr().err

    files = hub.repositories[SD15] = {}
    for part, path in (
        ("text_encoder", "text_encoder/model.safetensors"),
        ("unet", UNET),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
    ):
        write_checkpoint(tmp_path / "made.safetensors", tiny_weights(part))
        files[path] = (tmp_path / "made.safetensors").read_bytes()
    merges = ["#version: 0.2", *(" ".join(pair) for pair in TINY_MERGES)]
    files["tokenizer/merges.txt"] = "\n".join(merges).encode()

    assert download(hub, "sd15") == 0
    assert run(command) == 0
    assert (tmp_path / "sd_final.png").is_file()


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """diffusers' folder of a tiny Stable Diffusion XL, as a repository."""
    folder = write_tiny_xl(tmp_path_factory.mktemp("tiny") / "base")
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("is_one_file", [False, True])
@pytest.mark.parametrize(
    ("name", "repository", "file", "defaults"),
    [
        (
            "sdxl-lightning",
            LIGHTNING,
            "sdxl_lightning_4step_unet.safetensors",
            (4, 1.0, "euler", "trailing"),
        ),
        (
            "sdxl-lcm",
            "latent-consistency/lcm-sdxl",
            "diffusion_pytorch_model.safetensors",
            (4, 8.0, "lcm", None),  # whose steps are its own
        ),
    ],
)
def test_a_unet_that_was_fetched_generates_images_with_its_base(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_base: dict[str, bytes],
    name: str,
    repository: str,
    file: str,
    defaults: tuple[object, ...],
    is_one_file: bool,
) -> None:
    unet = replace(TINY_XL.unet, time_cond_proj_dim=VARIANTS[name].unet.time_cond_proj_dim)
    own = replace(VARIANTS[name], sample_size=64, configs={**TINY_XL.configs, "unet": unet})
    monkeypatch.setitem(VARIANTS, "sdxl", TINY_XL)
    monkeypatch.setitem(VARIANTS, name, own)
    command = ["generate", "lighthouse at dark", "--model", name, "--cpu", "all", "-o", "x.png"]
    command += ["--width", "32", "--height", "32"]
    assert run(command) == 3
    assert f"`sdpy download {name}` downloads them" in capsys.readouterr().err

    hub.repositories[SDXL] = tiny_base
    write_checkpoint(tmp_path / "made.safetensors", tiny_xl_model(own, "unet").state_dict())
    config = unet_json(unet, 32) | {"_class_name": "UNet2DConditionModel"}
    hub.repositories[repository] = {
        file: (tmp_path / "made.safetensors").read_bytes(),
        "config.json": json.dumps(config).encode(),
    }
    if is_one_file:
        assert download(hub, "sdxl") == 0
        assert run(["convert", "data/sdxl", "data/sdxl.safetensors"]) == 0
        vocabulary = tmp_path / "data/sdxl/tokenizer/merges.txt"
        vocabulary.rename(tmp_path / "data/bpe_simple_vocab_16e6.txt")
        shutil.rmtree(tmp_path / "data/sdxl")
        capsys.readouterr()
        assert run(command) == 3
        assert f"no UNet for {name}: looked for data/unet-" in capsys.readouterr().err
    assert download(hub, name) == 0
    usage = capsys.readouterr().out
    assert usage == f'sdpy generate "lighthouse at dark" --model {name}\n'
    if not is_one_file:
        assert not (tmp_path / "data/sdxl/unet").exists()
        assert run([*command[:2], "--model", "sdxl"]) == 3
        assert "or fetch them with `sdpy download sdxl`" in capsys.readouterr().err
    assert run(command) == 0
    assert run(["info", "x.png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["record"]["options"]
    keys = ("steps", "guidance-scale", "scheduler", "timestep-spacing")
    assert tuple(told[key] for key in keys) == defaults


def test_a_folder_and_another_data_folder(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = hub.repositories[SD21] = pipeline("sd21")
    hub.repositories[SD15] = pipeline("sd15")

    assert download(hub, "sd21", "sd15", "--data", "my weights", "--dtype", "fp16") == 0

    unet = tmp_path / "my weights" / "sd21" / UNET
    assert unet.read_bytes() == files["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert capsys.readouterr().out.splitlines() == [
        "sdpy generate \"lighthouse at dark\" --model 'my weights/sd21'",
        "sdpy generate \"lighthouse at dark\" --data 'my weights'",
    ]


def test_a_dry_run_lists_and_fetches_nothing(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    download(hub, "sd15")
    (tmp_path / "data" / "unet.safetensors").unlink()
    (tmp_path / "data" / "vae.safetensors").write_bytes(b"mine")
    capsys.readouterr()
    hub.requests.clear()

    assert download(hub, "sd15", "--dry-run") == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:4]] == [
        ["present", "26", "bytes", "data/bpe_simple_vocab_16e6.txt"],
        ["present", "40.0", "kB", "data/pytorch_model.safetensors"],
        ["differs", "40.0", "kB", "data/vae.safetensors"],
        ["missing", "40.0", "kB", "data/unet.safetensors"],
    ]
    assert lines[4].startswith("to download: 80.0 kB; free in data: ")
    assert download(hub, "sd15", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)["files"]
    assert [(file["state"], file["path"]) for file in told] == [
        (line.split()[0], line.split()[3]) for line in lines[:4]
    ]
    assert [file["size"] for file in told[:2]] == [26, 40_000]
    assert [request for request in hub.requests if "/resolve/" in request.path] == []


def test_a_dry_run_makes_no_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    assert download(hub, "sd15", "--dry-run", "--data", "somewhere/else") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_broke_off_is_resumed_by_the_same_command(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")
    hub.faults[UNET] = [Break(20_000)] + [Break(0)] * fetch.MAX_TRIES

    assert download(hub, "sd15") == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sdpy: ") and last.endswith("the same command resumes from there")
    hub.faults.clear()
    hub.requests.clear()

    assert download(hub, "sd15") == 0
    assert [request.headers["Range"] for request in hub.fetched(UNET)] == ["bytes=20000-"]
    assert (tmp_path / "data" / "unet.safetensors").read_bytes() == files[UNET]


def test_nothing_is_fetched_when_something_is_in_the_way(hub: LoopbackHub, tmp_path: Path) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")
    data = tmp_path / "data"
    data.mkdir()
    (data / "unet.safetensors").write_bytes(b"mine")

    assert download(hub, "sd15") == 2
    assert files_in(data) == {"unet.safetensors"}
    assert [request for request in hub.requests if "/resolve/" in request.path] == []

    assert download(hub, "sd15", "--force") == 0
    assert (data / "unet.safetensors").read_bytes() == files[UNET]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sd16"], 2, "unknown model 'sd16': use one of sd15, "),
        (["owner/nothing"], 6, "has no repository owner/nothing"),
        (["sd15", "--revision", "v9"], 6, "has no revision 'v9'"),
        (["sd15", "sd21", "--revision", "main"], 2, "--revision belongs to one repository"),
        (["sd15", "--dtype", "int8"], 2, "unknown dtype 'int8'"),
        (["sd15", "--token-file", "nothing"], 2, "cannot read the token in nothing"),
        (["sd15", "--data", "file"], 2, "file cannot be written to"),
    ],
)
def test_errors_are_a_line_and_an_exit_code(
    hub: LoopbackHub,
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    (tmp_path / "file").write_text("")

    assert download(hub, *arguments, "--quiet") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "data").exists()


def test_a_wrong_checksum_is_exit_code_3(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.corrupt.add(UNET)

    assert download(hub, "sd15") == 3
    assert "unet.safetensors" not in files_in(tmp_path / "data")


def test_no_room_is_exit_code_5(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    monkeypatch.setattr(fetch, "free_bytes", lambda _: 1000)

    assert download(hub, "sd15") == 5
    assert list(tmp_path.iterdir()) == []


def test_a_gated_repository_with_a_token_file(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories["owner/gated"] = pipeline("gated")
    hub.gated.add("owner/gated")
    hub.token = "hf_good"
    (tmp_path / "token").write_text("hf_good\n")

    assert download(hub, "owner/gated") == 6
    assert download(hub, "owner/gated", "--token-file", "token") == 0
    assert (tmp_path / "data" / "gated" / UNET).is_file()


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(MODELS)


def test_quiet_prints_nothing(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    assert download(hub, "sd15", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_bars(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[UNET] = [Break(20_000)]
    monkeypatch.setattr("sdpy.cli.download.open_display", lambda _: display.TerminalDisplay())
    monkeypatch.setenv("COLUMNS", "200")

    assert download(hub, "sd15") == 0
    error = capsys.readouterr().err
    assert "downloading data/unet.safetensors" in error
    assert "40.0/40.0 kB" in error
    assert "trying again" in error


def test_an_interrupted_download_is_resumed_by_the_same_command(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = hub.repositories[SD15] = pipeline("sd15") | {UNET: bytes(3_000_000)}

    def interrupt(bar: display._Lines, completed: int) -> None:
        if bar.total == 3_000_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(display._Lines, "update", interrupt)
        assert download(hub, "sd15") == 130
    assert "the same command resumes from here" in capsys.readouterr().err

    (part,) = (tmp_path / "data").glob(".unet*.part")
    hub.requests.clear()
    arrived = part.stat().st_size
    assert 0 < arrived < 3_000_000

    assert download(hub, "sd15") == 0
    assert (tmp_path / "data" / "unet.safetensors").read_bytes() == files[UNET]
    assert [request.headers["Range"] for request in hub.fetched(UNET)] == [f"bytes={arrived}-"]


def test_long_transfers_print_lines_now_and_then(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[SD15] = pipeline("sd15") | {UNET: bytes(3_000_000)}
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)

    assert download(hub, "sd15") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "unet" in line]
    assert len(lines) > 2
    assert all(line.endswith(" s left") for line in lines[1:-1])
    assert lines[-1] == "downloading data/unet.safetensors: 3.0 MB of 3.0 MB"


def sdpy(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, whose huggingface_hub reads the environment."""
    return subprocess.run(
        [sys.executable, "-m", "sdpy", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_mirror_is_named_by_the_environment(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.token = "hf_good"

    done = sdpy("download", "sd15", HF_ENDPOINT=hub.address + "/", HF_TOKEN="hf_good")

    assert (done.returncode, done.stdout) == (0, 'sdpy generate "lighthouse at dark"\n'), (
        done.stderr
    )
    assert len(files_in(tmp_path / "data")) == 4
    # Nothing but the model is asked for, such as statistics.
    assert {request.path.split("/")[1] for request in hub.requests} <= {"api", SD15.split("/")[0]}
    assert {request.path for request in hub.requests if request.path.startswith("/api")} == {
        f"/api/models/{SD15}/revision/main"
    }
    assert {request.headers["Authorization"] for request in hub.requests} == {"Bearer hf_good"}


def test_a_hubs_warnings_stay_off_the_terminal(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.bare = True
    hub.warning = "topic; buy something"

    done = sdpy("download", "sd15", "--quiet", HF_ENDPOINT=hub.address)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_offline(hub: LoopbackHub, tmp_path: Path) -> None:
    done = sdpy("download", "sd15", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")

    assert done.returncode == 6
    assert "HF_HUB_OFFLINE is set" in done.stderr.splitlines()[-1]
    assert hub.requests == []


def test_a_proxy_that_cannot_be_used_is_said() -> None:
    done = sdpy("download", "sd15", HF_ENDPOINT="http://127.0.0.1:9", HTTP_PROXY="gopher://x:1")

    assert done.returncode == 6
    assert "proxy" in done.stderr.splitlines()[-1]


def test_neither_help_nor_downloads_import_torch(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    script = """
import sys
from sdpy.cli.app import run
assert run(["--help"]) == run(["download", "--help"]) == 0
print("huggingface_hub" in sys.modules, "torch" in sys.modules, file=sys.stderr)
assert run(["download", "sd15", "--quiet"]) == 0
print("huggingface_hub" in sys.modules, "torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_ENDPOINT": hub.address},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stderr.splitlines() == ["False False", "True False"]
