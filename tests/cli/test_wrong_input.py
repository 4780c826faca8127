"""Every wrong option and file ends in one line, with its exit code, before a model is loaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdpy.checkpoints import write_checkpoint

USAGE, WEIGHTS, IMAGE, OUTPUT, SHORTAGE = 2, 3, 4, 5, 7


def files(tiny_data: Path) -> dict[str, str]:
    """Images and weights, good and bad ones, by the names that the cases below use."""
    folder = Path.cwd().parent / "files"
    folder.mkdir()
    good = Image.effect_noise((40, 30), 60).convert("RGB")
    good.save(folder / "good.png")
    good.crop((0, 0, 40, 8)).save(folder / "flat.png")
    Image.new("L", (40, 30), 255).save(folder / "white.png")
    Image.new("L", (40, 30), 0).save(folder / "black.png")
    Image.new("L", (40, 20), 255).save(folder / "other_proportions.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:100])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "empty.ot").touch()
    (folder / "cut.ot").write_bytes((tiny_data / "unet.ot").read_bytes()[:50_000])
    (folder / "text.ot").write_text("no weights")
    (folder / "folder.ot").mkdir()
    write_checkpoint(folder / "other.ot", {"a": torch.zeros(2)})
    torch.save({"a": torch.zeros(2)}, folder / "pickle.ot")
    names = {path.stem + path.suffix.replace(".", "_"): str(path) for path in folder.iterdir()}
    return {**names, "data": str(tiny_data), "missing": str(folder / "missing.png")}


COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "lighthouse"),
    "img2img": ("img2img", "{good_png}"),
    "inpaint": ("inpaint", "{good_png}", "{white_png}"),
}

# Options with a wrong value, and the exit code; for every command.
WRONG_OPTIONS: list[tuple[tuple[str, ...], int]] = [
    (("--n-steps", "0"), USAGE),
    (("--n-steps", "-3"), USAGE),
    (("--n-steps", "1001"), USAGE),
    (("--n-steps", "99999999999999999999"), USAGE),
    (("--n-steps", "2.5"), USAGE),
    (("--n-steps", "many"), USAGE),
    (("--n-steps", ""), USAGE),
    (("--n-steps",), USAGE),
    (("--seed", "-2"), USAGE),
    (("--seed", "9223372036854775808"), USAGE),
    (("--seed", "x"), USAGE),
    (("--num-samples", "0"), USAGE),
    (("--num-samples", "-1"), USAGE),
    (("--num-samples", "1000000"), USAGE),
    (("--guidance-scale", "high"), USAGE),
    (("--guidance-scale", "nan"), USAGE),
    (("--guidance-scale", "inf"), USAGE),
    (("--eta", "-0.1"), USAGE),
    (("--eta", "1.1"), USAGE),
    (("--eta", "nan"), USAGE),
    (("--scheduler", "nope"), USAGE),
    (("--timestep-spacing", "nope"), USAGE),
    (("--model", "nope"), USAGE),
    (("--model", ""), USAGE),
    (("--cpu", "nope"), USAGE),
    (("--cpu", "clip,nope"), USAGE),
    (("--cpu", "clip", "--cpu", "gpu"), USAGE),
    (("--cpu", ""), USAGE),
    (("--device", "nope"), USAGE),
    (("--device", "meta"), USAGE),
    (("--device", "cuda:99"), USAGE),
    (("--device", "hpu"), USAGE),
    (("--device", ""), USAGE),
    (("--sliced-attention-size", "-1"), USAGE),
    (("--deepcache", "0"), USAGE),
    (("--deepcache", "2.5"), USAGE),
    (("--deepcache", "2", "--deepcache-branch", "-1"), USAGE),
    (("--deepcache", "2", "--deepcache-branch", "3"), USAGE),  # the tiny UNet has 0 to 2
    (("--deepcache-branch", "0"), USAGE),
    (("--token-merging", "-0.1"), USAGE),
    (("--token-merging", "0.76"), USAGE),
    (("--token-merging", "nan"), USAGE),
    (("--guidance-interval", ""), USAGE),
    (("--guidance-interval", "0.5"), USAGE),
    (("--guidance-interval", "0.2;0.8"), USAGE),
    (("--guidance-interval", "0.8,0.2"), USAGE),
    (("--guidance-interval", "0,inf"), USAGE),
    (("--guidance-interval", "nan,1"), USAGE),
    (("--memory", "lots"), USAGE),
    (("--memory", ""), USAGE),
    (("--memory", "0"), USAGE),
    (("--memory", "-1G"), USAGE),
    (("--memory", "4X"), USAGE),
    (("--memory", "1M"), SHORTAGE),
    (("--memory", "4096"), SHORTAGE),
    (("--dtype", "fp8"), USAGE),
    (("--dtype", ""), USAGE),
    (("--dtype", "fp16", "--device", "cpu"), USAGE),
    (("--threads", "0"), USAGE),
    (("--threads", "-2"), USAGE),
    (("--threads", "1025"), USAGE),
    (("--threads", "all"), USAGE),
    (("--offload", "--cpu", "all"), USAGE),
    (("--offload", "yes"), USAGE),
    (("--compile", "--cpu", "all"), USAGE),
    (("--cuda-graphs", "--cpu", "all"), USAGE),
    (("--prompt-syntax", "nope"), USAGE),
    (("--long-prompt", "nope"), USAGE),
    (("--long-prompt", "error", "--negative-prompt", "cat " * 76), USAGE),
    (("--clip-skip", "0"), USAGE),
    (("--clip-skip", "3"), USAGE),  # the tiny text encoder has two layers
    (("--clip-skip", "x"), USAGE),
    (("--embedding", "={data}/unet.ot"), USAGE),
    (("--sliced-attention-size", "half"), USAGE),
    (("--width", "0"), USAGE),
    (("--width", "-8"), USAGE),
    (("--height", "9000"), USAGE),
    (("--height", "1.5"), USAGE),
    (("-o", "image"), USAGE),
    (("-o", "image.gif"), USAGE),
    (("-o", ""), USAGE),
    (("-o", "missing/image.png"), USAGE),
    (("-o", "{folder_png}"), USAGE),
    (("-o", "a" * 300 + ".png"), USAGE),
    (("-o", "/proc/image.png"), USAGE),
    (("--bogus",), USAGE),
    (("--negative-prompt",), USAGE),
    (("one", "two", "three"), USAGE),
    (("--data", "missing"), WEIGHTS),
    (("--data", "a" * 300), WEIGHTS),
    (("--data", "{good_png}"), WEIGHTS),
    *(
        ((option, name), WEIGHTS)
        for option in ("--clip-weights", "--unet-weights", "--vae-weights", "--vocab-file")
        for name in ("{missing}", "{empty_ot}", "{cut_ot}", "{text_ot}", "{folder_ot}")
    ),
    *(
        ((option, name), WEIGHTS)
        for option in ("--clip-weights", "--unet-weights", "--vae-weights")
        for name in ("{other_ot}", "{pickle_ot}", "{good_png}", "a" * 300)
    ),
    *(
        (("--embedding", name), WEIGHTS)
        for name in ("{missing}", "{empty_ot}", "{folder_ot}", "{data}/unet.ot", "", "x=", "x=y")
    ),
    (("--unet-weights", "{data}/vae.ot"), WEIGHTS),
    (("--unet-weights", "{data}/unet-5.ot"), WEIGHTS),
    (("--vae-weights", "{data}/unet.ot"), WEIGHTS),
    (("--clip-weights", "{data}/unet.ot"), WEIGHTS),
    (("--vocab-file", "{data}/unet.ot"), WEIGHTS),
]

WRONG_COMMANDS: list[tuple[tuple[str, ...], int]] = [
    (("nope",), USAGE),
    (("--nope",), USAGE),
    (("generate",), USAGE),
    (("generate", "--width", "33", "x"), USAGE),
    (("generate", "--height", "8", "x"), USAGE),
    (("generate", "--strength", "0.5", "x"), USAGE),
    (("generate", "--unet-weights", "{data}/unet-5.ot", "x"), WEIGHTS),
    (("generate", "\udcff"), USAGE),
    (("generate", "x", "-n", "\udcff"), USAGE),
    (("img2img",), USAGE),
    (("img2img", "{good_png}", "--strength", "1.1"), USAGE),
    (("img2img", "{good_png}", "--strength", "-0.1"), USAGE),
    (("img2img", "{good_png}", "--strength", "nan"), USAGE),
    (("img2img", "{good_png}", "--strength", "x"), USAGE),
    (("img2img", "{good_png}", "--unet-weights", "{data}/unet-5.ot"), WEIGHTS),
    (("img2img", "{good_png}", "--width", "10"), IMAGE),
    (("inpaint", "{good_png}"), USAGE),
    (("inpaint", "{good_png}", "{white_png}", "--strength", "2"), USAGE),
    (("inpaint", "{good_png}", "{black_png}"), IMAGE),
    (("inpaint", "{good_png}", "{other_proportions_png}"), IMAGE),
    *(
        (command, IMAGE)
        for name in ("missing", "cut_png", "text_png", "empty_png", "folder_png", "flat_png")
        for command in (
            ("img2img", f"{{{name}}}"),
            ("inpaint", f"{{{name}}}", "{white_png}"),
        )
    ),
    *(
        (("inpaint", "{good_png}", f"{{{name}}}"), IMAGE)
        for name in ("missing", "cut_png", "text_png", "empty_png", "folder_png", "flat_png")
    ),
]

CASES = [
    *(
        ((*command, *options), code)
        for command in COMMANDS.values()
        for options, code in WRONG_OPTIONS
    ),
    *WRONG_COMMANDS,
]


def fault(result: Any, code: int) -> str | None:
    """What is wrong with a refusal; None for nothing."""
    if result.out:
        return f"stdout: {result.out}"
    if len(result.err.splitlines()) != 1 or not result.err.startswith("sdpy: "):
        return f"not one line: {result.err}"
    if result.code != code or "internal error" in result.err:
        return f"exit code {result.code} instead of {code}: {result.err}"
    return None


def test_wrong_input_is_refused_in_one_line(sdpy: Any, loaded: list[str], tiny_data: Path) -> None:
    names = files(tiny_data)
    faults = {}
    for arguments, code in CASES:
        if any("/proc/" in word for word in arguments) and sys.platform != "linux":
            continue
        result = sdpy(*(word.format(**names) for word in arguments))
        faults[arguments] = fault(result, code)
        assert loaded == [], arguments
        assert os.listdir() == [], arguments
    assert {arguments: fault for arguments, fault in faults.items() if fault is not None} == {}


def test_the_same_without_a_mistake_works(sdpy: Any, loaded: list[str], tiny_data: Path) -> None:
    """So that the refusals above are due to what they are tested for."""
    names = files(tiny_data)
    for command in COMMANDS.values():
        words = [word.format(**names) for word in command]
        result = sdpy(*words, "--n-steps", "2", "-o", "a.png")
        assert (result.code, result.out) == (0, "a.png\n"), result.err
        assert loaded
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "x", "--n-steps", "0"), USAGE, ["--steps 0: use 1 or more"]),
        (("generate", "x", "--n-steps", "1001"), USAGE, ["1001 steps", "1 to 1000"]),
        (("generate", "x", "--model", "nope"), USAGE, ["'nope'", "sd15, sd15-inpaint", "demo"]),
        (("generate", "x", "--cpu", "clip,gpu"), USAGE, ["'gpu'", "all, clip, unet, vae"]),
        (("generate", "x", "--device", "nope"), USAGE, ["--device nope", "offers cpu"]),
        (("generate", "x", "--memory", "lots"), USAGE, ["--memory lots", "auto, low", "4G"]),
        (("generate", "x", "--memory", "1M"), SHORTAGE, ["32x32", "would take about", "--width"]),
        (("generate", "x", "--dtype", "half"), USAGE, ["'half'", "auto, fp32, fp16, bf16"]),
        (("generate", "x", "--cpu", "all", "--dtype", "fp16"), USAGE, ["for GPUs", "fp32"]),
        (("generate", "x", "--cpu", "all", "--offload"), USAGE, ["--offload", "for GPUs"]),
        (("generate", "x", "--cpu", "all", "--compile"), USAGE, ["--compile", "for GPUs"]),
        (("generate", "x", "--cpu", "all", "--cuda-graphs"), USAGE, ["--cuda-graphs", "CUDA"]),
        (("generate", "x", "--data", "no"), WEIGHTS, ["no/unet.ot", "README", "--model demo"]),
        (("generate", "x", "--vae-weights", "{data}/unet.ot"), WEIGHTS, ["unet.ot", "UNet"]),
        (("img2img", "{missing}"), IMAGE, ["missing.png", "no such image"]),
        (("inpaint", "{good_png}", "{black_png}"), IMAGE, ["black.png", "no white pixel"]),
        (("generate",), USAGE, ["Missing argument 'PROMPT'; 'sdpy generate --help' explains"]),
    ],
)
def test_the_line_says_what_is_wrong_and_what_to_do(
    sdpy: Any, tiny_data: Path, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    names = files(tiny_data)
    result = sdpy(*(word.format(**names) for word in arguments))
    assert result.code == code
    for word in words:
        assert word in result.err


def test_an_older_image_survives_a_refusal(sdpy: Any) -> None:
    Path("sd_final.png").write_bytes(b"old")
    assert sdpy("generate", "x", "--eta", "2").code == USAGE
    assert Path("sd_final.png").read_bytes() == b"old"
