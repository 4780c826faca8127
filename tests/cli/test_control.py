"""ControlNets, LoRAs and tiny autoencoders from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import Lora, write_checkpoint
from sdpy.errors import UsageError
from sdpy.models import AutoencoderTiny, ControlNetConfig, ControlNetModel
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.values import read_loras
from support.compare import randomise
from support.tiny import TINY

FAST = ("--n-steps", "2", "-q")
CONTROLNET = ControlNetConfig(TINY.unet, conditioning_embedding_out_channels=(4, 8))
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_checkpoint(
        folder / "net.safetensors", randomise(ControlNetModel(CONTROLNET)).state_dict()
    )
    write_checkpoint(folder / "taesd.ot", randomise(AutoencoderTiny(TINY.tiny_vae)).state_dict())
    lora = {f"{QUERY}.lora_down.weight": torch.ones(2, 16)}
    write_checkpoint(
        folder / "lora.safetensors", {**lora, f"{QUERY}.lora_up.weight": torch.ones(16, 2)}
    )
    levels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "map.png")
    Image.fromarray(levels[:32, :].repeat(2, 0).repeat(2, 1)).save(folder / "image.png")
    Image.new("L", (60, 64), 255).save(folder / "mask.png")
    return folder


def pixels(path: str = "sd_final.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def controls(monkeypatch: pytest.MonkeyPatch) -> list[Control]:
    """The controls that the pipelines were given."""
    from sdpy.pipelines import controlnet as control
    from sdpy.pipelines import plan

    given: list[Control] = []

    def noting(session: Any, controls: tuple[Control, ...], **size: int) -> None:
        given.extend(controls)
        control.check_controls(session, controls, **size)

    monkeypatch.setattr(plan, "check_controls", noting)
    return given


@pytest.mark.parametrize("task", ["generate", "img2img", "inpaint"])
def test_a_controlnet_changes_the_image(
    sdpy: Any, files: Path, task: str, controls: list[Control], loaded: list[str]
) -> None:
    first = {
        "generate": ("generate", "x", "--height", "64", "--width", "60"),
        "img2img": ("img2img", files / "image.png"),
        "inpaint": ("inpaint", files / "image.png", files / "mask.png"),
    }[task]
    net = ("--controlnet", files / "net.safetensors", "--control-image", files / "map.png")
    assert sdpy(*first, *FAST, "-o", "free.png").code == 0
    assert "net.safetensors" not in loaded
    assert sdpy(*first, *FAST, *net).code == 0
    assert loaded.count("net.safetensors") == 1
    assert not np.array_equal(pixels(), pixels("free.png"))
    assert pixels().shape == (64, 60, 3)
    assert controls[0].image.shape == (1, 3, 64, 60)
    assert 0 <= controls[0].image.min() < 0.2 < 0.8 < controls[0].image.max() <= 1
    assert sdpy(*first, *FAST, *net, "--control-scale", "0", "-o", "zero.png").code == 0
    assert np.abs(pixels("zero.png").astype(int) - pixels("free.png")).max() <= 1


def test_several_with_one_value_for_all_or_one_each(
    sdpy: Any, files: Path, controls: list[Control]
) -> None:
    net = ("--controlnet", files / "net.safetensors", "--control-image", files / "map.png")
    scales = ("--control-scale", "0.5", "--control-scale", "2")
    result = sdpy("generate", "x", *FAST, *net, *net, *scales, "--control-end", "0.5")
    assert result.code == 0, result.err
    assert [(c.scale, c.start, c.end) for c in controls] == [(0.5, 0.0, 0.5), (2.0, 0.0, 0.5)]
    with Image.open("sd_final.png") as image:
        image.load()
        assert 'ControlNet 1: "net.safetensors:2 0-0.5"' in image.text["parameters"]


def test_canny(sdpy: Any, files: Path, controls: list[Control]) -> None:
    pytest.importorskip("cv2")
    net = ("--controlnet", files / "net.safetensors", "--control-image", files / "map.png")
    edges = ("--control-preprocessor", "canny")
    assert sdpy("generate", "x", *FAST, *net, *edges).code == 0
    assert set(controls[0].image.unique().tolist()) == {0.0, 1.0}
    assert sdpy("generate", "x", *FAST, *net, *edges, "--canny-high", "5000").code == 0
    assert controls[1].image.sum() < controls[0].image.sum()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--controlnet", "net.safetensors"), 2, "1 times and --control-image 0 times"),
        (("--control-image", "map.png"), 2, "0 times and --control-image 1 times"),
        (("NET", "--control-scale", "1", "--control-scale", "2"), 2, "--control-scale is given 2"),
        (("--control-scale", "1"), 2, "--control-scale is for ControlNets"),
        (("NET", "--control-preprocessor", "depth"), 2, "'depth': use one of none, canny"),
        (("NET", "--control-start", "0.7", "--control-end", "0.7"), 2, "from 0.7 to 0.7"),
        (("NET", "--control-scale", "nan"), 2, "--control-scale nan: use a finite number"),
        (("NET", "--control-end", "1.5"), 2, "--control-end"),
        (("--controlnet", "lora.safetensors", "--control-image", "map.png"), 3, "a LoRA"),
        (("--controlnet", "none", "--control-image", "map.png"), 3, "none"),
        (("--controlnet", "net.safetensors", "--control-image", "none.png"), 4, "none.png"),
        (("--lora", "net.safetensors"), 3, "net.safetensors"),
        (("--lora", "none.safetensors:0.5"), 3, "none.safetensors "),
        (("--lora", "lora.safetensors:nan"), 2, "finite"),
        (("--vae-weights", "taesd.ot"), 3, "other latents"),
    ],
)
def test_what_cannot_work_is_one_line(
    sdpy: Any, files: Path, words: tuple[str, ...], code: int, says: str, loaded: list[str]
) -> None:
    net = ("--controlnet", files / "net.safetensors", "--control-image", files / "map.png")
    spread: list[Any] = []
    for word in words:
        if word == "NET":
            spread += net
        else:
            exists = (files / word.split(":")[0]).exists() and not word.startswith("-")
            spread.append(files / word if exists else word)
    result = sdpy("generate", "x", *FAST, *spread)
    assert (result.code, result.out) == (code, "")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert loaded == []


def test_lora(sdpy: Any, files: Path) -> None:
    assert sdpy("generate", "x", *FAST, "-o", "free.png").code == 0
    assert sdpy("generate", "x", *FAST, "--lora", files / "lora.safetensors").code == 0
    assert not np.array_equal(pixels(), pixels("free.png"))
    whole = pixels()
    half = ("--lora", f"{files / 'lora.safetensors'}:0.5")
    assert sdpy("generate", "x", *FAST, *half).code == 0
    assert not np.array_equal(pixels(), whole)
    assert sdpy("generate", "x", *FAST, *half, *half).code == 0
    assert np.abs(pixels().astype(int) - whole).max() <= 1
    with Image.open("sd_final.png") as image:
        image.load()
        assert 'LoRA 0: "lora.safetensors:0.5", LoRA 1: ' in image.text["parameters"]


def test_the_order_of_loras_changes_nothing_but_rounding(sdpy: Any, files: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for layer in (QUERY, QUERY.replace("to_q", "to_v")):
        tensors[f"{layer}.lora_down.weight"] = torch.ones(2, 16)
        tensors[f"{layer}.lora_up.weight"] = torch.eye(16)[:, :2]
    write_checkpoint("other.safetensors", tensors)
    first = ("--lora", f"{files / 'lora.safetensors'}:0.7")
    second = ("--lora", "other.safetensors:-0.4")
    made = []
    for loras in (first, (*first, *second), (*second, *first)):
        assert sdpy("generate", "x", *FAST, *loras).code == 0
        made.append(pixels().astype(int))
    assert np.abs(made[0] - made[1]).max() > 1
    assert np.abs(made[1] - made[2]).max() <= 1
    with Image.open("sd_final.png") as image:
        image.load()
        told = 'LoRA 0: "other.safetensors:-0.4", LoRA 1: "lora.safetensors:0.7"'
        assert told in image.text["parameters"]


def test_how_a_lora_is_named(tmp_path: Path) -> None:
    def lora(text: str) -> Lora:
        (one,) = read_loras([text])
        return one

    odd = tmp_path / "a:0.5"
    odd.touch()
    assert lora("a/b.safetensors") == Lora(Path("a/b.safetensors"), 1.0)
    assert lora("a/b.safetensors:0.75") == Lora(Path("a/b.safetensors"), 0.75)
    assert lora("b:-1") == Lora(Path("b"), -1.0)
    assert lora(r"C:\b.safetensors") == Lora(Path(r"C:\b.safetensors"), 1.0)
    assert lora(str(odd)) == Lora(odd, 1.0)
    assert lora(f"{odd}:0") == Lora(odd, 0.0)
    for wrong in (":0.5", "b:inf"):
        with pytest.raises(UsageError):
            lora(wrong)
