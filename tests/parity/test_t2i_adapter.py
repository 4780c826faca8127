"""T2I-Adapters beside diffusers': the networks, the UNet that they steer, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.test_pipelines import PROMPT
from sdpy.checkpoints import write_checkpoint
from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    T2IAdapter,
    T2IAdapterConfig,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.models.t2i_adapter import adapter_type_for
from sdpy.optimizations.approximate import DeepCache, approximate
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.zoo.find import find_source
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import SD15, SD21, SDXL, SDXL_REFINER, SEGMIND_VEGA, SSD_1B
from support.compare import (
    MODEL_TOLERANCE,
    RUN_TOLERANCE,
    assert_same_images,
    normal,
    randomise,
    relative_error,
)
from support.references import (
    load_text_encoder,
    reference_controlnet,
    reference_ddim,
    reference_t2i_adapter,
    reference_text_encoder,
    reference_unet,
    reference_vae,
)
from support.tasks import decoded, one_image, text2img
from support.tiny import TINY, random_image, tiny_files, tiny_weights
from support.tiny_xl import TINY_XL, reference_pipeline, reference_tokenizer, write_tiny_xl
from support.ways import OTHER_WAYS, assert_same_otherwise

FULL = T2IAdapterConfig(channels=(16, 24, 32, 32), downscale_factor=2)
LIGHT = T2IAdapterConfig(
    channels=(16, 24, 32), num_res_blocks=3, downscale_factor=2, adapter_type="light_adapter"
)
FULL_XL = replace(FULL, downscale_factor=4, adapter_type="full_adapter_xl")
ADAPTERS = {
    "full": FULL,
    "full, grey": replace(FULL, in_channels=1),
    "full, one ResNet": replace(FULL, num_res_blocks=1),
    "light": LIGHT,
    "light, grey": replace(LIGHT, in_channels=1),
    "xl": FULL_XL,
    "xl, grey": replace(FULL_XL, in_channels=1),
}
# As Stable Diffusion 1.x has them: four levels, of which the last does not attend.
UNET = UNet2DConditionConfig(
    block_out_channels=(16, 24, 32, 32),
    cross_attention=(True, True, True, False),
    attention_heads=(2, 3, 4, 4),
    layers_per_block=1,
    cross_attention_dim=32,
    norm_num_groups=8,
)
VARIANT = TINY.with_configs(unet=UNET)
STEPS, WIDTH, HEIGHT, SCALE = 6, 48, 32, TINY.vae.scaling_factor
NEGATIVE = "dark cat"


def adapter(config: T2IAdapterConfig, seed: int = 0) -> nn.Module:
    return randomise(T2IAdapter(config), seed)


def their_adapter(config: T2IAdapterConfig, seed: int = 0) -> nn.Module:
    theirs = reference_t2i_adapter(config)
    theirs.load_state_dict(adapter(config, seed).state_dict())
    return theirs


def image(seed: int, channels: int = 3) -> Tensor:
    shown = random_image(WIDTH, HEIGHT, seed) / 2 + 0.5
    return shown if channels == 3 else luma(shown)


def luma(shown: Tensor) -> Tensor:
    red, green, blue = shown.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


# ---------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_features(name: str) -> None:
    config = ADAPTERS[name]
    ours, theirs = adapter(config), their_adapter(config)
    for size in ((32, 48), (36, 20)):
        shown = normal(2, config.in_channels, *size, seed=3).sigmoid()
        for a, b in zip(ours(shown), theirs(shown), strict=True):
            assert relative_error(a, b) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["full", "xl"])
@torch.no_grad()
def test_sides_that_do_not_divide(name: str) -> None:
    """The last row and column are repeated; the UNet halves its sides likewise."""
    config = ADAPTERS[name]
    shown = normal(1, 3, 30, 46, seed=3).sigmoid()
    right, below = (-side % config.downscale_factor for side in (46, 30))
    theirs = their_adapter(config)(F.pad(shown, (0, right, 0, below), mode="replicate"))
    for a, b in zip(adapter(config)(shown), theirs, strict=True):
        assert relative_error(a, b) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["full", "light", "xl"])
@torch.no_grad()
def test_a_change_of_any_weight_is_noticed(name: str) -> None:
    ours, theirs = adapter(ADAPTERS[name]), their_adapter(ADAPTERS[name])
    shown = normal(1, 3, 32, 32, seed=3).sigmoid()
    expected = torch.cat([feature.flatten() for feature in ours(shown)])
    for parameter_name, parameter in theirs.named_parameters():
        saved = parameter.clone()
        parameter.copy_(saved.flip(0))
        changed = torch.cat([feature.flatten() for feature in theirs(shown)])
        assert relative_error(changed, expected) > 10 * MODEL_TOLERANCE, parameter_name
        parameter.copy_(saved)


FULL_SIZE = {
    "full": T2IAdapterConfig(),
    "grey": T2IAdapterConfig(in_channels=1),
    "xl": T2IAdapterConfig(downscale_factor=16, adapter_type="full_adapter_xl"),
    "light": T2IAdapterConfig(
        channels=(320, 640, 1280), num_res_blocks=4, adapter_type="light_adapter"
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_names_and_shapes_of_the_weights(name: str) -> None:
    with torch.device("meta"):
        ours = T2IAdapter(FULL_SIZE[name]).state_dict()
        theirs = reference_t2i_adapter(FULL_SIZE[name]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_which_kind_goes_with_which_unet() -> None:
    kinds = {
        "full_adapter": (SD15, SD21, VARIANT),
        "full_adapter_xl": (SDXL, SSD_1B, SEGMIND_VEGA, TINY_XL),
        None: (SDXL_REFINER, TINY),
    }
    for kind, variants in kinds.items():
        assert {adapter_type_for(variant.unet) for variant in variants} == {kind}


# ------------------------------------------------------------------------------ the steered UNet


@pytest.mark.parametrize("with_controlnet", [False, True])
@pytest.mark.parametrize("name", ["full", "light", "xl"])
@torch.no_grad()
def test_the_steered_unet(name: str, with_controlnet: bool) -> None:
    """By an adapter, alone and together with a ControlNet."""
    config = TINY_XL.unet if name == "xl" else UNET
    ours, theirs = randomise(UNet2DConditionModel(config), 9), reference_unet(config)
    theirs.load_state_dict(ours.state_dict())
    inputs = (normal(2, 4, 16, 24), torch.tensor(300), normal(2, 7, config.cross_attention_dim))
    added: dict[str, Any] = {}
    if name == "xl":
        added = {"text_embeds": normal(2, 48), "time_ids": normal(2, 6, seed=1).abs() * 100}
    control: dict[str, Any] = {}
    if with_controlnet:
        sizes = ControlNetConfig(config, conditioning_embedding_out_channels=(4, 8))
        net, their_net = randomise(ControlNetModel(sizes), 5), reference_controlnet(sizes)
        their_net.load_state_dict(net.state_dict())
        down, mid = their_net(
            *inputs, normal(2, 3, 32, 48).sigmoid(), added_cond_kwargs=added, return_dict=False
        )
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    features = their_adapter(ADAPTERS[name])(normal(2, 3, 32, 48, seed=4).sigmoid())
    expected = theirs(
        *inputs,
        added_cond_kwargs=added,
        down_intrablock_additional_residuals=[feature.clone() for feature in features],
        **control,
    ).sample
    found = ours(*inputs, **added, down_intrablock_additional_residuals=features, **control)
    assert relative_error(found, expected) <= MODEL_TOLERANCE
    assert relative_error(ours(*inputs, **added, **control), expected) > 1e-2
    one_row = [feature[:1] for feature in features]
    again = [feature[:1].expand(2, -1, -1, -1) for feature in features]
    found, wanted = (
        ours(*inputs, **added, down_intrablock_additional_residuals=some)
        for some in (one_row, again)
    )
    assert relative_error(found, wanted) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["full", "xl"])
@torch.no_grad()
def test_deep_cache_is_steered(name: str) -> None:
    """Whole evaluations are the plain ones, and one is due where an adapter ceases to count."""
    config = TINY_XL.unet if name == "xl" else UNET
    unet = randomise(UNet2DConditionModel(config), 9)
    assert isinstance(unet, UNet2DConditionModel)
    context = normal(1, 7, config.cross_attention_dim)
    added: dict[str, Any] = {}
    if name == "xl":
        added = {"text_embeds": normal(1, 48), "time_ids": normal(1, 6, seed=1).abs() * 100}
    features = adapter(ADAPTERS[name])(normal(1, 3, 32, 48, seed=4).sigmoid())
    steered: dict[str, Any] = {**added, "down_intrablock_additional_residuals": features}
    samples, t = [normal(1, 4, 16, 24, seed=i) for i in range(3)], torch.tensor(300)
    with approximate(unet, [DeepCache(3, branch=2)], (0,)) as called:
        found = [called(samples[i], t, context, **steered) for i in range(2)]
        found.append(called(samples[2], t, context, **added))
    assert torch.equal(found[0], unet(samples[0], t, context, **steered))
    assert torch.equal(found[2], unet(samples[2], t, context, **added))
    with approximate(unet, [DeepCache(3, branch=2)], (0,)) as called:
        called(samples[0], t, context, **steered)
        features[0].zero_()
        unsteered = called(samples[1], t, context, **steered)
    assert relative_error(unsteered, found[1]) > 1e-3


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in ADAPTERS.items():
        for seed in (0, 1):
            write_checkpoint(
                folder / f"{name}{seed}.safetensors", adapter(config, seed).state_dict()
            )
    write_checkpoint(folder / "unet.safetensors", unet_weights())
    return folder


def unet_weights() -> dict[str, Tensor]:
    return randomise(UNet2DConditionModel(UNET), seed=2).state_dict()


@pytest.fixture(scope="module")
def session(files: Path, tiny_data: Path) -> Session:
    weights = tiny_files(tiny_data).with_weights(unet=files / "unet.safetensors")
    return Session(ModelSource(VARIANT, weights))


@pytest.fixture(scope="module")
def xl_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = write_tiny_xl(tmp_path_factory.mktemp("xl") / "sdxl")
    return Session(find_source(str(folder), folder))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    root = tmp_path_factory.mktemp("tokenizers")

    def make(adapters: list[nn.Module]) -> Any:
        text_encoder = reference_text_encoder(VARIANT.text_encoder)
        load_text_encoder(text_encoder, tiny_weights("text_encoder"))
        unet, vae = reference_unet(UNET), reference_vae(VARIANT.vae, scaling_factor=SCALE)
        unet.load_state_dict(unet_weights())
        vae.load_state_dict(tiny_weights("vae"))
        pipeline = diffusers.StableDiffusionAdapterPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=reference_tokenizer(root),
            unet=unet,
            adapter=adapters if len(adapters) > 1 else adapters[0],
            scheduler=reference_ddim(VARIANT.noise, "leading"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
        )
        latents = latents[0] if isinstance(latents, tuple) else latents.images
        return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


def our_request(**options: Any) -> Request:
    shared = {"steps": STEPS, "width": WIDTH, "height": HEIGHT, "negative_prompt": NEGATIVE}
    return Request(PROMPT, **{**shared, **options})


def our_image(session: Session, **options: Any) -> Tensor:
    return one_image(text2img(session, our_request(**options)))


RUNS: dict[str, list[tuple[str, float]]] = {
    "full": [("full", 1.0)],
    "full, grey": [("full, grey", 0.7)],
    "light": [("light", -0.5)],
    "several": [("full", 0.6), ("light, grey", 0.4), ("full", 0.3)],
}


@pytest.mark.parametrize("guidance_scale", [6.0, 1.0])
@pytest.mark.parametrize("name", RUNS)
def test_generate(
    session: Session, theirs: Callable[..., Any], files: Path, name: str, guidance_scale: float
) -> None:
    """Colours become grey as Pillow makes them so."""
    runs, seeds = RUNS[name], [0, 0, 1]
    controls = tuple(
        Control(files / f"{kind}{seeds[k]}.safetensors", image(20 + k), scale)
        for k, (kind, scale) in enumerate(runs)
    )
    options = {"seed": 5, "guidance_scale": guidance_scale, "timestep_spacing": "leading"}
    found = our_image(session, controls=controls, **options)
    shown = [image(20 + k, ADAPTERS[kind].in_channels) for k, (kind, _) in enumerate(runs)]
    scales = [scale for _, scale in runs]
    adapters = [their_adapter(ADAPTERS[kind], seeds[k]) for k, (kind, _) in enumerate(runs)]
    expected = their_image(
        theirs(adapters),
        image=shown if len(shown) > 1 else shown[0],
        adapter_conditioning_scale=scales if len(scales) > 1 else scales[0],
        guidance_scale=guidance_scale,
        latents=torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.manual_seed(5)),
    )
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(session, **options), expected) > 0.01


@pytest.mark.parametrize("end", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["xl", "xl, grey"])
def test_generate_with_xl(
    xl_session: Session, files: Path, tmp_path: Path, kind: str, end: float
) -> None:
    """``adapter_conditioning_factor`` is the end."""
    control = Control(files / f"{kind}0.safetensors", image(20), 0.8, 0.0, end)
    found = our_image(xl_session, seed=5, guidance_scale=5.0, controls=(control,))

    def make(add_watermarker: bool, **parts: Any) -> Any:
        return diffusers.StableDiffusionXLAdapterPipeline(**parts)

    pipeline = reference_pipeline(make, TINY_XL, tmp_path, adapter=their_adapter(ADAPTERS[kind]))
    expected = their_image(
        pipeline,
        image=image(20, ADAPTERS[kind].in_channels),
        adapter_conditioning_scale=0.8,
        adapter_conditioning_factor=end,
        latents=torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.manual_seed(5)),
    )
    assert relative_error(found, expected) <= RUN_TOLERANCE
    free = our_image(xl_session, seed=5, guidance_scale=5.0)
    assert relative_error(free, expected) > 0.01


TASKS: dict[str, tuple[Any, float]] = {
    "img2img": (diffusers.StableDiffusionXLImg2ImgPipeline, 0.6),
    "inpaint": (diffusers.StableDiffusionXLInpaintPipeline, 0.6),
    "inpaint, from noise": (diffusers.StableDiffusionXLInpaintPipeline, 1.0),
}


@pytest.mark.parametrize("task", TASKS)
def test_with_an_image(xl_session: Session, files: Path, tmp_path: Path, task: str) -> None:
    """diffusers has no such pipeline: its parts, put together as in its one for text-to-image.

    That hands a copy of the features, once for each context, to the UNet.
    """
    kind, strength = TASKS[task]
    start, mask = random_image(WIDTH, HEIGHT), torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 4 : HEIGHT - 6, : WIDTH // 2] = 1
    given = {"image": start, "strength": strength, "guidance_scale": 5.0, "seed": 9}
    options: dict[str, Any] = {"image": start / 2 + 0.5}
    if task != "img2img":
        given["mask"] = mask
        options |= {"mask_image": mask, "width": WIDTH, "height": HEIGHT}
    control = Control(files / "xl0.safetensors", image(20), 0.8)
    found = our_image(xl_session, controls=(control,), **given)
    features = [0.8 * one for one in their_adapter(ADAPTERS["xl"])(image(20))]

    def steer(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows = len(args[0])
        given = [one.repeat(rows, 1, 1, 1) for one in features]
        return args, {**kwargs, "down_intrablock_additional_residuals": given}

    pipeline = reference_pipeline(kind, TINY_XL, tmp_path)
    pipeline.unet.register_forward_pre_hook(steer, with_kwargs=True)
    with torch.inference_mode():
        latents = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            output_type="latent",
            strength=strength,
            guidance_scale=5.0,
            generator=torch.manual_seed(9),
            **options,
        ).images
        scaling_factor = pipeline.vae.config.scaling_factor
        expected = pipeline.vae.decode(latents / scaling_factor).sample
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(xl_session, **given), expected) > 0.01


@pytest.mark.parametrize("task", ["text2img", "img2img", "inpaint"])
def test_alone_as_in_a_batch(session: Session, files: Path, tiny_data: Path, task: str) -> None:
    """Images that are steered by different images, together with a ControlNet."""
    sizes = ControlNetConfig(UNET, conditioning_embedding_out_channels=(4, 8))
    net = files / "controlnet.safetensors"
    write_checkpoint(net, randomise(ControlNetModel(sizes), 5).state_dict())
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    given = {
        "text2img": {},
        "img2img": {"image": random_image(WIDTH, HEIGHT, 1), "strength": 0.8},
        "inpaint": {"image": random_image(WIDTH, HEIGHT, 1), "mask": mask},
    }[task]
    requests = [
        Request(
            PROMPT,
            steps=3,
            seed=seed,
            width=None if given else WIDTH,
            height=None if given else HEIGHT,
            batch_size=2,
            controls=(
                Control(files / "full0.safetensors", image(seed), 0.7),
                Control(net, image(seed + 1), 0.5),
            ),
            **given,
        )
        for seed in (3, 4)
    ]
    from sdpy.pipelines.generate import generate

    together = [one.pixels for one in decoded(generate(session, requests))]
    alone = [one_image(generate(session, [request])) for request in requests]
    assert_same_images(alone, together)
    free = [
        one_image(generate(session, [replace(one, controls=one.controls[1:])])) for one in requests
    ]
    assert all(relative_error(a, b) > 0.01 for a, b in zip(alone, free, strict=True))


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_compute(
    session: Session, files: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(files / "full0.safetensors", image(20), 0.8)
    assert_same_otherwise(session, our_request(seed=5, controls=(control,)), way, monkeypatch)
