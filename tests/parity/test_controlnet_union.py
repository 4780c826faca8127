"""ControlNet-Union beside diffusers': the network, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from parity.test_pipelines import PROMPT
from sdpy.checkpoints import write_checkpoint
from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    ControlNetUnionConfig,
    ControlNetUnionModel,
)
from sdpy.pipelines.control_types import CONTROL_TYPES
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import SDXL
from support.compare import (
    MODEL_TOLERANCE,
    RUN_TOLERANCE,
    assert_same_images,
    normal,
    randomise,
    relative_error,
)
from support.references import reference_controlnet_union
from support.tasks import decoded, one_image, text2img
from support.tiny import random_image
from support.tiny_xl import TINY_XL, reference_pipeline, write_tiny_xl
from support.ways import OTHER_WAYS, assert_same_otherwise

UNION = ControlNetUnionConfig(
    TINY_XL.unet,
    conditioning_embedding_out_channels=(4, 8),
    num_trans_channel=16,
    num_trans_head=2,
    num_proj_channel=16,
)
PROMAX = replace(UNION, num_control_type=8, num_trans_layer=2)
TYPES = list(CONTROL_TYPES)
STEPS, WIDTH, HEIGHT = 6, 48, 32
NEGATIVE = "dark cat"


def union(config: ControlNetUnionConfig, seed: int = 0) -> nn.Module:
    return randomise(ControlNetUnionModel(config), seed)


def their_union(config: ControlNetUnionConfig, seed: int = 0) -> nn.Module:
    theirs = reference_controlnet_union(config)
    theirs.load_state_dict(union(config, seed).state_dict())
    return theirs


def image(seed: int) -> Tensor:
    return random_image(WIDTH, HEIGHT, seed) / 2 + 0.5


# ----------------------------------------------------------------------------------- the network


def both(
    ours: nn.Module,
    theirs: nn.Module,
    kinds: list[int],
    scales: list[float],
    size: tuple[int, int] = (16, 24),
    rows: int = 1,
) -> tuple[Tensor, Tensor]:
    """What both make of a sample and as many images as there are kinds, all in one row."""
    sample = normal(1, 4, *size)
    context, pooled = normal(rows, 7, 80, seed=1), normal(rows, 48, seed=2)
    ids = normal(rows, 6, seed=3).abs() * 100
    images = [normal(1, 3, *(2 * s for s in size), seed=9 + k).sigmoid() for k in range(len(kinds))]
    found = ours(
        sample,
        torch.tensor(300),
        context,
        images=images,
        control_types=kinds,
        scales=scales,
        text_embeds=pooled,
        time_ids=ids,
    )
    flags = torch.zeros(rows, theirs.config.num_control_type)
    flags[:, kinds] = 1
    expected = theirs(
        sample.expand(rows, -1, -1, -1),
        torch.tensor(300),
        context,
        controlnet_cond=[one.expand(rows, -1, -1, -1) for one in images],
        control_type=flags,
        control_type_idx=kinds,
        conditioning_scale=scales,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        return_dict=False,
    )
    return tuple(torch.cat([x.flatten() for x in (*down, mid)]) for down, mid in (found, expected))


@pytest.mark.parametrize("size", [(16, 24), (9, 10)])
@pytest.mark.parametrize(
    ("config", "kinds", "scales"),
    [
        (UNION, [0], [1.0]),
        (UNION, [5], [0.4]),
        (PROMAX, [7], [-1.0]),
        (PROMAX, [3, 6], [0.7, 0.4]),
        (PROMAX, [1, 1, 0], [0.5, 0.0, 1.5]),
    ],
)
@torch.no_grad()
def test_residuals(
    config: ControlNetUnionConfig, kinds: list[int], scales: list[float], size: tuple[int, int]
) -> None:
    """Of one row, and of two that differ in the prompt alone, as guidance has them."""
    ours, theirs = union(config), their_union(config)
    for rows in (1, 2):
        found, expected = both(ours, theirs, kinds, scales, size, rows)
        assert relative_error(found, expected) <= MODEL_TOLERANCE


@torch.no_grad()
def test_kinds_and_scales_count() -> None:
    ours, theirs = union(PROMAX), their_union(PROMAX)
    made = [both(ours, theirs, *case)[0] for case in (([0], [1.0]), ([1], [1.0]), ([0], [0.5]))]
    assert relative_error(made[1], made[0]) > 1e-2
    assert relative_error(2 * made[2], made[0]) <= MODEL_TOLERANCE
    several = [both(ours, theirs, [0, 1], scales)[0] for scales in ([1.0, 1.0], [1.0, 0.5])]
    assert relative_error(*several) > 1e-2


@torch.no_grad()
def test_a_change_of_any_weight_is_noticed() -> None:
    """But of what makes queries and keys, of which there is only one.

    What ordinary ControlNets have as well is tested with these.
    """
    ours, theirs = union(PROMAX), their_union(PROMAX)
    expected, _ = both(ours, theirs, [0, 7], [1.0, 0.5])
    ordinary = dict(ControlNetModel(ControlNetConfig(TINY_XL.unet)).named_parameters())
    for name, parameter in theirs.named_parameters():
        if name in ordinary:
            continue
        saved = parameter.clone()
        parameter.copy_(saved.flip(0))
        if "in_proj" in name:  # so that queries and keys become what values were
            parameter[: len(saved) // 3] = saved[: len(saved) // 3]
        _, changed = both(ours, theirs, [0, 7], [1.0, 0.5])
        assert relative_error(changed, expected) > 10 * MODEL_TOLERANCE, name
        parameter.copy_(saved)


def test_names_and_shapes_at_real_size() -> None:
    sizes = ControlNetConfig(unet=SDXL.unet, conditioning_embedding_out_channels=(48, 96, 192, 384))
    config = ControlNetUnionConfig(**vars(sizes))
    with torch.device("meta"):
        ours = ControlNetUnionModel(config).state_dict()
        theirs = reference_controlnet_union(config).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("config", [UNION, PROMAX], ids=["union", "promax"])
def test_inspected_and_converted(tmp_path: Path, config: ControlNetUnionConfig) -> None:
    weights = union(config).state_dict()
    write_checkpoint(tmp_path / "in.safetensors", weights)
    (seen,) = inspect_weights(tmp_path / "in.safetensors").components
    assert (seen.name, seen.problems) == ("controlnet", {})
    assert seen.summary == f"a ControlNet-Union of {config.num_control_type} control types"
    assert type(seen.config) is ControlNetUnionConfig
    assert seen.config.num_control_type == config.num_control_type
    assert seen.config.num_trans_layer == config.num_trans_layer
    found = inspect_weights(tmp_path / "in.safetensors")
    for _ in plan_conversion(found, tmp_path / "folder").run():
        pass
    loaded = diffusers.ControlNetUnionModel.from_pretrained(tmp_path / "folder").state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    their_union(config).save_pretrained(tmp_path / "theirs")
    (seen,) = inspect_weights(tmp_path / "theirs").components
    assert (seen.config, seen.problems) == (replace(config), {})


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = write_tiny_xl(tmp_path_factory.mktemp("xl") / "sdxl")
    return Session(find_source(str(folder), folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unions")
    write_checkpoint(folder / "union.safetensors", union(UNION).state_dict())
    write_checkpoint(folder / "promax.safetensors", union(PROMAX).state_dict())
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    root = tmp_path_factory.mktemp("tokenizers")

    def make(kind: type, network: nn.Module) -> Any:
        return reference_pipeline(kind, TINY_XL, root, controlnet=network)

    return make


def their_image(pipeline: Any, **options: Any) -> Tensor:
    with torch.inference_mode():
        latents = pipeline(
            PROMPT,
            num_inference_steps=STEPS,
            output_type="latent",
            return_dict=False,
            negative_prompt=NEGATIVE,
            width=WIDTH,
            height=HEIGHT,
            **options,
        )[0]
        return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


def our_request(**options: Any) -> Request:
    shared = {"steps": STEPS, "width": WIDTH, "height": HEIGHT, "negative_prompt": NEGATIVE}
    return Request(PROMPT, **{**shared, **options})


def our_image(session: Session, **options: Any) -> Tensor:
    return one_image(text2img(session, our_request(**options)))


# The network, and the kind, scale, start and end of each image.
RUNS: dict[str, tuple[str, list[tuple[int, float, float, float]]]] = {
    "one": ("union", [(1, 0.8, 0.0, 1.0)]),
    "at the beginning": ("promax", [(7, 0.8, 0.0, 0.5)]),
    "two": ("union", [(0, 0.8, 0.0, 1.0), (3, 0.5, 0.0, 1.0)]),
    "two, of which one ends": ("promax", [(6, 0.8, 0.0, 1.0), (3, 0.5, 0.0, 0.4)]),
}


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("name", RUNS)
def test_generate(
    session: Session, theirs: Callable[..., Any], files: Path, name: str, guidance_scale: float
) -> None:
    net, shown = RUNS[name]
    controls = tuple(
        Control(files / f"{net}.safetensors", image(20 + k), *span, control_type=TYPES[kind])
        for k, (kind, *span) in enumerate(shown)
    )
    found = our_image(session, seed=3, guidance_scale=guidance_scale, controls=controls)
    kinds, scales, starts, ends = (list(values) for values in zip(*shown, strict=True))
    expected = their_image(
        theirs(
            diffusers.StableDiffusionXLControlNetUnionPipeline,
            their_union(UNION if net == "union" else PROMAX),
        ),
        control_image=[image(20 + k) for k in range(len(shown))],
        control_mode=kinds,
        controlnet_conditioning_scale=scales,
        control_guidance_start=starts,
        control_guidance_end=ends,
        guidance_scale=guidance_scale,
        latents=torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.manual_seed(3)),
    )
    assert relative_error(found, expected) <= RUN_TOLERANCE
    free = our_image(session, seed=3, guidance_scale=guidance_scale)
    assert relative_error(free, expected) > 0.01


def test_img2img(session: Session, theirs: Callable[..., Any], files: Path) -> None:
    start = random_image(WIDTH, HEIGHT)
    control = Control(files / "union.safetensors", image(20), 0.8, control_type="depth")
    found = our_image(
        session, seed=7, image=start, strength=0.6, guidance_scale=5.0, controls=(control,)
    )
    expected = their_image(
        theirs(diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline, their_union(UNION)),
        image=start / 2 + 0.5,
        control_image=[image(20)],
        control_mode=[1],
        controlnet_conditioning_scale=0.8,
        strength=0.6,
        guidance_scale=5.0,
        generator=torch.manual_seed(7),
    )
    assert relative_error(found, expected) <= RUN_TOLERANCE


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpaint(
    session: Session, theirs: Callable[..., Any], files: Path, strength: float
) -> None:
    """Two kinds, of which one ends, and the latents outside the mask are put back."""
    start, mask = random_image(WIDTH, HEIGHT), torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 4 : HEIGHT - 6, : WIDTH // 2] = 1
    controls = (
        Control(files / "promax.safetensors", image(20), 0.8, control_type="depth"),
        Control(files / "promax.safetensors", image(21), 0.5, 0.0, 0.5, control_type="repaint"),
    )
    given = {"image": start, "mask": mask, "strength": strength, "guidance_scale": 5.0, "seed": 9}
    found = our_image(session, controls=controls, **given)
    expected = their_image(
        theirs(diffusers.StableDiffusionXLControlNetUnionInpaintPipeline, their_union(PROMAX)),
        image=start / 2 + 0.5,
        mask_image=mask,
        control_image=[image(20), image(21)],
        control_mode=[1, 7],
        controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_start=[0.0, 0.0],
        control_guidance_end=[1.0, 0.5],
        strength=strength,
        guidance_scale=5.0,
        generator=torch.manual_seed(9),
    )
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(session, **given), expected) > 0.01


@pytest.mark.parametrize("task", ["text2img", "inpaint"])
def test_alone_as_in_a_batch(session: Session, files: Path, task: str) -> None:
    """Where neighbours have other images; beside an ordinary ControlNet."""
    net = files / "net.safetensors"
    sizes = ControlNetConfig(TINY_XL.unet, conditioning_embedding_out_channels=(4, 8))
    write_checkpoint(net, randomise(ControlNetModel(sizes), 5).state_dict())
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    given = {"image": random_image(WIDTH, HEIGHT, 1), "mask": mask} if task == "inpaint" else {}
    requests = [
        Request(
            PROMPT,
            steps=3,
            seed=seed,
            width=None if given else WIDTH,
            height=None if given else HEIGHT,
            batch_size=2,
            controls=(
                Control(files / "promax.safetensors", image(seed), 0.7, control_type="tile"),
                Control(net, image(seed + 1), 0.5),
                Control(files / "promax.safetensors", image(seed + 2), 0.4, control_type="hed"),
            ),
            **given,
        )
        for seed in (3, 4)
    ]
    together = [one.pixels for one in decoded(generate(session, requests))]
    alone = [one_image(generate(session, [request])) for request in requests]
    assert_same_images(alone, together)


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_compute(
    session: Session, files: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(files / "union.safetensors", image(20), 0.8, control_type="canny")
    assert_same_otherwise(session, our_request(seed=5, controls=(control,)), way, monkeypatch)
