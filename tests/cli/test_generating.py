"""Commands that work: what they write, print and accept."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import sdpy.runtime.devices as devices_module
import sdpy.runtime.loading as loading_module
from sdpy import __version__
from sdpy.checkpoints import write_checkpoint
from sdpy.cli.app import COMMANDS
from sdpy.models import UNet2DConditionModel
from sdpy.options import options_of

FAST = ("--n-steps", "2")


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def text_of(path: str | Path) -> str:
    with Image.open(path) as image:
        image.load()
        return image.text["parameters"]


# --- outputs -----------------------------------------------------------------------------------


def test_the_default_is_sd_final_in_the_current_folder(sdpy: Any) -> None:
    result = sdpy("generate", "lighthouse at dark", *FAST)
    assert (result.code, result.out) == (0, "sd_final.png\n")
    assert os.listdir() == ["sd_final.png"]
    with Image.open("sd_final.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (32, 32), "RGB")


def test_several_samples_are_numbered_and_use_seed_plus_k(sdpy: Any) -> None:
    result = sdpy("generate", "x", *FAST, "--num_samples", "2", "--seed", "7")
    assert result.out == "sd_final.1.png\nsd_final.2.png\n"
    assert sorted(os.listdir()) == ["sd_final.1.png", "sd_final.2.png"]
    sdpy("generate", "x", *FAST, "--seed", "8", "-o", "alone.png")
    assert np.array_equal(pixels("alone.png"), pixels("sd_final.2.png"))
    assert not np.array_equal(pixels("alone.png"), pixels("sd_final.1.png"))
    assert "Seed: 8" in text_of("sd_final.2.png")


def test_images_are_computed_together_and_are_what_they_are_alone(sdpy: Any) -> None:
    three = ("generate", "x", *FAST, "--num-samples", "3", "--seed", "7")
    names = [f"{name}.{k}.png" for name in ("alone", "batch") for k in (1, 2, 3)]
    assert sdpy(*three, "--batch-size", "1", "-o", "alone.png").code == 0
    result = sdpy(*three, "--batch-size", "2", "-o", "batch.png")
    assert result.out.split() == names[3:]
    assert sorted(os.listdir()) == names
    bars = [line.split(":")[0] for line in result.err.splitlines() if line.startswith("image")]
    assert bars == ["images 1 to 2 of 3", "image 3 of 3"]
    for k in (1, 2, 3):
        alone, batch = (pixels(f"{name}.{k}.png").astype(int) for name in ("alone", "batch"))
        assert np.abs(alone - batch).max() <= 1
        assert text_of(f"alone.{k}.png") == text_of(f"batch.{k}.png")
        assert f"Seed: {6 + k}" in text_of(f"batch.{k}.png")
    assert np.abs(pixels("batch.1.png").astype(int) - pixels("batch.2.png")).max() > 10


@pytest.mark.parametrize(("size", "together"), [("2", 2), ("9", 3), ("auto", 3), ("AUTO", 3)])
def test_how_many_are_computed_together_is_told_if_asked(
    sdpy: Any, size: str, together: int
) -> None:
    three = ("generate", "x", *FAST, "--num-samples", "3", "--batch-size", size)
    result = sdpy(*three, "--verbose")
    assert result.code == 0
    assert f"images computed together: {together}" in result.err.splitlines()
    # All that the command needs again after the first batch: of a single one, nothing.
    kept = "unet, vae" if together < 3 else "none"
    assert f"models that stay in memory: {kept}" in result.err.splitlines()
    result = sdpy(*three)
    assert "together" not in result.err and "stay in memory" not in result.err


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "many", "", "1025"])
def test_batch_sizes_that_cannot_be(sdpy: Any, size: str, loaded: list[str]) -> None:
    result = sdpy("generate", "x", *FAST, "--batch-size", size)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"sdpy: --batch-size {size}: use auto, or 1 to 1024\n"
    assert loaded == []


@pytest.mark.parametrize(
    ("option", "name", "format"),
    [
        ("-o", "a.png", "PNG"),
        ("--output", "b c.JPG", "JPEG"),
        ("--final-image", "d.jpeg", "JPEG"),
        ("--final_image", "e.webp", "WEBP"),
    ],
)
def test_the_suffix_gives_the_format(sdpy: Any, option: str, name: str, format: str) -> None:
    path = Path.cwd().parent / name
    result = sdpy("generate", "x", *FAST, "--guidance-scale", "1", option, path)
    assert result.out == f"{path}\n"
    assert os.listdir() == []
    with Image.open(path) as image:
        assert image.format == format


def unet_hash(data: Path) -> str:
    return hashlib.sha256((data / "unet.ot").read_bytes()).hexdigest()[:10]


def test_how_it_was_generated_is_in_the_png(sdpy: Any, tiny_data: Path) -> None:
    prompt, negative = "a lighthouse, 夜の灯台 😀", "naïve\ncat"
    options = ("--seed", "0", "--guidance-scale", "0", "--height", "48", "--steps", "3")
    sdpy("generate", prompt, "-n", negative, *options)
    assert text_of("sd_final.png") == (
        f"{prompt}\nNegative prompt: {negative}\nSteps: 3, Sampler: DDIM, CFG scale: 0, "
        f"Seed: 0, Size: 32x48, Model hash: {unet_hash(tiny_data)}, Model: sd15, "
        f"Timestep spacing: original, Eta: 0, Version: sdpy {__version__}"
    )


def test_how_the_prompt_was_read_is_in_the_png(sdpy: Any) -> None:
    options = ("--clip-skip", "2", "--prompt-syntax", "plain", "--long-prompt", "truncate")
    sdpy("generate", "(cat)", *options, *FAST)
    facts = f"Clip skip: 2, Emphasis: None, Long prompt: truncate, Version: sdpy {__version__}"
    assert text_of("sd_final.png").endswith(facts)


def test_an_older_image_is_replaced(sdpy: Any) -> None:
    Path("sd_final.png").write_bytes(b"old")
    assert sdpy("generate", "x", *FAST).code == 0
    assert pixels("sd_final.png").shape == (32, 32, 3)


def test_quiet_prints_nothing(sdpy: Any) -> None:
    command = ("generate", "lighthouse " * 80, "--long-prompt", "truncate", *FAST)
    for flag in ("-q", "--quiet"):
        result = sdpy(*command, flag)
        assert (result.code, result.out, result.err) == (0, "", "")
    assert "too long" in sdpy(*command).err


def test_quiet_still_says_what_is_wrong(sdpy: Any) -> None:
    result = sdpy("generate", "x", "--quiet", "--n-steps", "1001")
    assert (result.code, len(result.err.splitlines())) == (2, 1)


# --- failures after the work has started -------------------------------------------------------


def test_a_full_disk(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sd_final.png").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = sdpy("generate", "x", *FAST)
    assert (result.code, result.out) == (5, "")
    last = result.err.splitlines()[-1]
    assert last.startswith("sdpy: cannot write sd_final.png: No space left")
    assert os.listdir() == ["sd_final.png"]
    assert Path("sd_final.png").read_bytes() == b"old"


def test_an_image_of_no_numbers(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(self: Any, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full_like(sample, torch.nan)

    monkeypatch.setattr(UNet2DConditionModel, "forward", nan)
    result = sdpy("generate", "x", *FAST)
    assert result.code == 8
    last = result.err.splitlines()[-1]
    assert "step 1 of 2 gave latents that are not finite" in last
    assert "--scheduler" in last
    assert os.listdir() == []


def raise_in_the_unet(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def forward(*_: Any, **__: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "sdpy: interrupted"),
        (OSError(5, "Input/output error"), 1, "sdpy: [Errno 5] Input/output error"),
        (
            ValueError("a\nb"),
            1,
            "sdpy: internal error, please report it: ValueError: a b",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_is_raised_is_one_line(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    raise_in_the_unet(monkeypatch, error)
    result = sdpy("generate", "x", *FAST)
    assert (result.code, result.out) == (code, "")
    seed, told, last = result.err.splitlines()
    assert (seed, told[:8]) == ("seed: 32", "prompt: ")
    assert last.startswith(line)
    assert os.listdir() == []


def test_debug_raises(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPY_DEBUG", "1")
    raise_in_the_unet(monkeypatch, ValueError("where"))
    with pytest.raises(ValueError, match="where"):
        sdpy("generate", "x", *FAST)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stdout(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", closefd=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        result = sdpy("generate", "x", *FAST)
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert "No space left" in last
    assert "internal error" not in last


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("cuda", "cuda", "cuda")),
        (("--cpu", "vae"), ("cuda", "cuda", "cpu")),
        (("--cpu", "clip,vae"), ("cpu", "cuda", "cpu")),
        (("--cpu", "clip", "--cpu", "UNET"), ("cpu", "cpu", "cuda")),
        (("--cpu", "clip , unet", "--cpu", "vae"), ("cpu", "cpu", "cpu")),
        (("--cpu", "all"), ("cpu", "cpu", "cpu")),
        (("--device", "cpu"), ("cpu", "cpu", "cpu")),
    ],
)
def test_places(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(devices_module, "best_device", lambda: torch.device("cuda"))
    placed: list[str] = []

    def noting(model: Any, source: Any, *, device: torch.device, **_: Any) -> Any:
        placed.append(device.type)
        return load(model, source)

    load = loading_module.load_weights
    monkeypatch.setattr(loading_module, "load_weights", noting)
    assert sdpy("generate", "x", *FAST, *words).code == 0
    assert tuple(placed) == expected


def test_underscores_and_dashes_are_one(sdpy: Any, tiny_data: Path) -> None:
    outputs = []
    for separator in ("_", "-"):
        options = {
            "n_steps": 2,
            "guidance_scale": 2.5,
            "sliced_attention_size": 3,
            "negative_prompt": "a_b-c",
            "clip_weights": tiny_data / "pytorch_model.ot",
            "final_image": f"a{separator}b.png",
        }
        words = [w for k, v in options.items() for w in ("--" + k.replace("_", separator), v)]
        outputs.append(sdpy("generate", "x_y-z", *words).out)
    assert outputs == ["a_b.png\n", "a-b.png\n"]  # values stay as they are
    assert text_of("a_b.png") == text_of("a-b.png")
    assert text_of("a_b.png").startswith("x_y-z\nNegative prompt: a_b-c\n")
    assert sdpy("generate", "x", "--n_steps=2", "--final_image=c_d.png").out == "c_d.png\n"
    assert sdpy("generate", "x", "--n_steps=2", "-oe_f.png").out == "e_f.png\n"


def test_both_names_of_an_option(sdpy: Any) -> None:
    common = ("generate", "x", "-q")
    made = []
    for steps, prediction in (("--steps", "--prediction"), ("--n-steps", "--prediction-type")):
        result = sdpy(*common, steps, "3", prediction, "v_prediction")
        assert (result.code, result.err) == (0, "")
        assert "Steps: 3," in text_of("sd_final.png")
        made.append(pixels("sd_final.png"))
    assert np.array_equal(*made)
    assert sdpy(*common, "--steps", "3").code == 0
    assert not np.array_equal(pixels("sd_final.png"), made[0])


@pytest.mark.parametrize("size", [0, 1, 3, 1000])
def test_slices_give_the_same_image(sdpy: Any, size: int) -> None:
    sdpy("generate", "x", *FAST, "-o", "whole.png")
    assert sdpy("generate", "x", *FAST, "--sliced_attention_size", size).code == 0
    difference = np.abs(pixels("whole.png").astype(int) - pixels("sd_final.png"))
    assert difference.max() <= 1


def test_weights_of_one_s_own(sdpy: Any, tiny_data: Path) -> None:
    sdpy("generate", "x", *FAST, "-o", "usual.png")
    names = {
        "--clip-weights": "pytorch_model.ot",
        "--unet-weights": "unet.ot",
        "--vae-weights": "vae.ot",
        "--vocab-file": "bpe_simple_vocab_16e6.txt",
    }
    words = [word for option, name in names.items() for word in (option, tiny_data / name)]
    assert sdpy("generate", "x", *FAST, "--data", "nowhere", *words).code == 0
    assert np.array_equal(pixels("usual.png"), pixels("sd_final.png"))


def test_inpaint_takes_the_inpainting_weights_and_says_when_it_has_others(
    sdpy: Any, loaded: list[str], tiny_data: Path
) -> None:
    Image.effect_noise((32, 32), 60).convert("RGB").save("../a.png")
    Image.new("L", (32, 32), 255).save("../white.png")
    result = sdpy("inpaint", "../a.png", "../white.png", *FAST)
    assert result.code == 0 and "unet-inpaint.ot" in loaded
    assert "not made for inpainting" not in result.err
    unet = tiny_data / "unet.ot"
    result = sdpy("inpaint", "../a.png", "../white.png", *FAST, "--unet-weights", unet)
    assert result.code == 0
    assert f"{unet} is not made for inpainting" in result.err
    result = sdpy("inpaint", "../a.png", "../white.png", *FAST, "--model", "sd15")
    assert result.code == 0 and "not made" not in result.err


# --- images of all kinds -----------------------------------------------------------------------


def noise(width: int, height: int, mode: str) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(values, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def write_image(kind: str, path: Path) -> tuple[int, int]:
    """Write an image; returns the size that it is seen at."""
    size = {"odd": (37, 29), "one row more": (32, 33)}.get(kind, (40, 30))
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        noise(*size, "RGB").save(path, exif=exif)
        return (30, 40)
    modes = {"alpha": "RGBA", "palette": "P", "16 bits": "I;16", "grey": "L", "bits": "1"}
    noise(*size, modes.get(kind, "RGB")).save(path)
    return size


KINDS = ["rgb", "odd", "one row more", "rotated", "alpha", "palette", "16 bits", "grey", "bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_img2img_of_any_image(sdpy: Any, kind: str) -> None:
    size = write_image(kind, Path("../in.png"))
    result = sdpy("img2img", "../in.png", *FAST, "--strength", "0.5")
    assert (result.code, result.out) == (0, "sd_final.png\n"), result.err
    with Image.open("sd_final.png") as image:
        assert (image.size, image.mode) == (size, "RGB")
    assert f"Size: {size[0]}x{size[1]}" in text_of("sd_final.png")


@pytest.mark.parametrize("kind", KINDS)
def test_inpaint_of_any_image_keeps_what_is_outside_the_mask(sdpy: Any, kind: str) -> None:
    width, height = write_image(kind, Path("../in.png"))
    mask = np.zeros((height, width), np.uint8)
    mask[7:21, 10:] = 255
    Image.fromarray(mask).save("../mask.png")
    result = sdpy("inpaint", "../in.png", "../mask.png", *FAST)
    assert result.code == 0, result.err
    generated = pixels("sd_final.png")
    assert generated.shape == (height, width, 3)

    with Image.open("../in.png") as image:
        if kind == "alpha":
            white = Image.new("RGBA", image.size, "white")
            seen = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
        elif kind == "16 bits":
            grey = np.asarray(image).astype(np.float64) / 65535 * 255
            seen = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
        else:
            seen = np.asarray(image.convert("RGB"))
            seen = np.rot90(seen, -1) if kind == "rotated" else seen
    assert np.array_equal(generated[mask == 0], seen[mask == 0])
    assert (generated[mask == 255] != seen[mask == 255]).mean() > 0.5


def test_a_wanted_size_crops_the_centre(sdpy: Any) -> None:
    write_image("rgb", Path("../in.png"))
    for words, size in {
        ("--width", "20", "--height", "26"): (20, 26),
        ("--width", "60"): (60, 45),
        ("--height", "60"): (80, 60),
    }.items():
        assert sdpy("img2img", "../in.png", *FAST, *words).code == 0
        with Image.open("sd_final.png") as image:
            assert image.size == size


def test_a_large_image_is_scaled_down(sdpy: Any) -> None:
    noise(200, 100, "RGB").save("../in.png")
    assert sdpy("img2img", "../in.png", *FAST).code == 0
    with Image.open("sd_final.png") as image:
        width, height = image.size
    assert width * height <= 64 * 64  # the tiny model's limit
    assert width == pytest.approx(2 * height, abs=1)


def test_the_input_may_be_the_output(sdpy: Any) -> None:
    write_image("rgb", Path("in.png"))
    before = pixels("in.png")
    assert sdpy("img2img", "in.png", *FAST, "-o", "in.png").code == 0
    assert not np.array_equal(before, pixels("in.png"))


# --- prompts -----------------------------------------------------------------------------------


def test_the_length_of_the_prompts_is_told(sdpy: Any) -> None:
    told = sdpy("generate", "cat (dark:1.5)", *FAST).err.splitlines()
    assert told[:2] == ["seed: 32", "prompt: 2 of 75 tokens; weighted: 'dark' 1.5"]
    assert told[2].startswith("image 1 of 1")
    told = sdpy("generate", "cat " * 80, "-n", "dark", *FAST).err.splitlines()
    assert told[1:3] == ["prompt: 80 tokens in 2 chunks of 75", "negative prompt: 1 of 75 tokens"]


def test_brackets_are_text_in_plain_prompts(sdpy: Any) -> None:
    """And in weighted ones if escaped."""
    images = []
    for options in (("a (cat)", "--prompt-syntax", "plain"), (r"a \(cat\)",), ("a (cat)",)):
        assert sdpy("generate", *options, *FAST).code == 0
        images.append(pixels("sd_final.png"))
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_embeddings_are_called_by_their_file_or_their_name(sdpy: Any) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for name in ("style.safetensors", "a=b.safetensors"):
        write_checkpoint(name, {"emb_params": vectors})
    images = []
    for prompt, embedding in (
        ("cat style", "style.safetensors"),
        ("cat a=b", "a=b.safetensors"),
        ("cat toy", "toy=style.safetensors"),
        ("cat style", "toy=style.safetensors"),
    ):
        result = sdpy("generate", prompt, "--embedding", embedding, *FAST)
        assert result.code == 0, result.err
        unused = "style.safetensors is not used, for no prompt says 'toy'"
        assert (unused in result.err) == (len(images) == 3)
        images.append(pixels("sd_final.png"))
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[3])


# --- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "img2img", "inpaint"])
def test_help_names_every_option_with_its_default(sdpy: Any, command: str) -> None:
    for flag in ("-h", "--help"):
        result = sdpy(command, flag)
        assert (result.code, result.err) == (0, "")
    for option in (
        *("--n-steps", "--seed", "--num-samples", "--guidance-scale", "--negative-prompt"),
        *("--scheduler", "--timestep-spacing", "--sigmas", "--eta", "--guidance-rescale"),
        *("--prediction", "--model", "--data", "--clip-weights"),
        *("--unet-weights", "--vae-weights", "--vocab-file", "--cpu", "--device"),
        *("--sliced-attention-size", "--final-image", "--quiet", "--width", "--height"),
        *("--memory", "--dtype", "--threads", "--offload", "--compile"),
        *("--prompt-syntax", "--long-prompt", "--clip-skip", "--embedding"),
    ):
        assert option in result.out
    for default in ("30", "32", "7.5", "sd_final.png", "sd15"):
        assert default in result.out


@pytest.mark.parametrize("command", ["img2img", "inpaint"])
def test_help_says_what_happens_to_images_of_all_kinds(sdpy: Any, command: str) -> None:
    words = " ".join(sdpy(command, "--help").out.split())
    for fact in ("EXIF", "transparency", "palettes", "grey", "16-bit", "however odd", "scaled"):
        assert fact in words
    assert "--strength" in words
    defaults = inspect.signature(COMMANDS[command]).parameters
    for part in re.findall(r"\w+", defaults["prompt"].default):
        assert part in words


@pytest.mark.parametrize("command", ["generate", "img2img", "inpaint", "batch"])
def test_a_narrow_terminal_shows_names_whole(
    sdpy: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = sdpy(command, "--help").out
    groups = get_type_hints(COMMANDS[command]).values()
    for group in filter(is_dataclass, groups):
        for _, one in options_of(group):
            assert not one.flags or re.search(rf"{one.flags[0].split('/')[0]}[ ,/]", shown)


def test_paragraphs_of_the_help_fill_a_narrow_terminal(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = sdpy("img2img", "--help").out.partition("╭")[0]
    *_, paragraph, _ = re.split(r"\n\s*\n", text)
    *lines, _ = [line.strip() for line in paragraph.splitlines()]
    assert len(lines) > 3 and all(len(line) > 60 for line in lines)


def test_help_of_the_program_names_the_commands(sdpy: Any) -> None:
    result = sdpy("--help")
    assert result.code == 0
    for name in (*COMMANDS, "--version", "--show-completion", "--install-completion"):
        assert name in result.out


def test_no_arguments_print_the_help_alone(sdpy: Any) -> None:
    result = sdpy()
    assert result.code == 2
    assert result.err == ""
    assert "Usage: sdpy" in result.out


def test_version(sdpy: Any) -> None:
    assert sdpy("--version").out == f"sdpy {__version__}\n"
