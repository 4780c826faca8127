"""The sizes of models, read off their weights' shapes and diffusers' JSON files.

Shapes tell everything but the number of attention heads, the groups of the norms and the scale of
the latents. These come from a ``config.json`` where there is one, otherwise from the variant whose
sizes the weights have, otherwise from what Stable Diffusion's published models have in common.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    ControlNetConfig,
    T2IAdapterConfig,
    UNet2DConditionConfig,
)
from sdpy.models.unet import TransformerLayers
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.variants import SMALL_UNETS, VARIANTS, ModelVariant

C = TypeVar("C")
T = TypeVar("T")
Json = Mapping[str, Any]
Outline = Mapping[str, Tensor]
"""Our names to tensors of the right shapes."""

HEAD_WIDTH = 64
"""Of all attention heads in CLIP, OpenCLIP and Stable Diffusion 2.x."""

COND_PROJ = "time_embedding.cond_proj.weight"
"""Only in UNets that take the guidance scale as an embedding."""

ADDED = "add_embedding.linear_1.weight"
"""Only in UNets that are told the prompt's pooled embedding and sizes."""

ADDED_SINUSOIDS = 256
"""For each of these sizes, in all such UNets. Weights do not show it."""

PROJECTION = "text_projection.weight"
"""Only in text encoders that make a pooled embedding."""

WIDTH_OF_2X = 1024
"""Of the prompt's embeddings in Stable Diffusion 2.x."""

VARYING = {"in_channels", "time_cond_proj_dim"}
"""Sizes of a UNet in which files of one variant differ."""


# --------------------------------------------------------------------------------- from weights


def unet_config(outline: Outline, config: Json) -> UNet2DConditionConfig:
    """The sizes of a UNet.

    Args:
        outline: its weights' shapes.
        config: what its ``config.json`` says; empty if there is none.

    Raises:
        WeightsError: the weights have no such names and shapes as a UNet's.
    """
    return _unet_config(outline, config, out_channels=size_in(outline, "conv_out.weight", 0))


def controlnet_config(outline: Outline, config: Json) -> ControlNetConfig:
    """The sizes of a ControlNet; see `unet_config`."""
    embedding = "controlnet_cond_embedding"
    halvings = count_in(outline, rf"{embedding}\.blocks\.(\d+)\.") // 2
    layers = ["conv_in", *(f"blocks.{2 * i + 1}" for i in range(halvings))]
    in_channels = size_in(outline, "conv_in.weight", 1)
    found = ControlNetConfig(
        # A UNet gives back as many channels as it takes, if it is not for inpainting.
        unet=_unet_config(outline, config, out_channels=in_channels),
        conditioning_channels=size_in(outline, f"{embedding}.conv_in.weight", 1),
        conditioning_embedding_out_channels=tuple(
            size_in(outline, f"{embedding}.{layer}.weight", 0) for layer in layers
        ),
    )
    return told_controlnet(found, config)


def unet_inputs(outline: Outline) -> dict[str, Any]:
    """What a UNet's file itself decides: `VARYING` of the fields of its sizes.

    These are the input channels, 9 for inpainting, and the width of the guidance scale's
    embedding, None where the UNet takes none. Empty where these are no weights of a UNet.
    """
    conv_in = outline.get("conv_in.weight")
    if conv_in is None or conv_in.ndim != 4:
        return {}
    cond_proj = outline.get(COND_PROJ)
    return {
        "in_channels": conv_in.shape[1],
        "time_cond_proj_dim": None if cond_proj is None else cond_proj.shape[-1],
    }


def controlnet_beside(variant: ModelVariant, outline: Outline) -> ControlNetConfig:
    """The sizes of a ControlNet that goes with a variant's UNet.

    The channels of its embedding of the image are its own: one entry a halving and one more; where
    the file lacks one, it is no ControlNet, or one for other latents, as loading will say. So are
    its transformers, of which there may be fewer and smaller ones than in the UNet.

    Raises:
        WeightsError: it is for UNets that are told other things.
    """
    _check_what_is_told(variant, outline)
    halvings = variant.vae.downsample_factor.bit_length() - 1
    names = ["conv_in", *(f"blocks.{2 * i + 1}" for i in range(halvings))]
    tensors = [outline.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
    return ControlNetConfig(
        unet=replace(
            variant.unet,
            in_channels=variant.vae.latent_channels,
            **_own_transformers(variant.unet, outline),
        ),
        conditioning_embedding_out_channels=tuple(
            1 if tensor is None else tensor.shape[0] for tensor in tensors
        ),
    )


OF_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL's refiner",
    2048: "Stable Diffusion XL",
}
"""For which models a UNet or ControlNet is, by the width of the prompt's embeddings."""


def _check_what_is_told(variant: ModelVariant, outline: Outline) -> None:
    """Raises ``WeightsError`` if a ControlNet is told other things than a variant's UNet."""
    seen = _first(outline, r".*\.attn2\.to_k\.weight")
    width, needed = None if seen is None else seen.shape[-1], variant.unet.cross_attention_dim
    is_told = ADDED in outline
    if is_told == (variant.unet.addition_embed_type is not None) and width in (None, needed):
        return
    theirs, ours = (
        OF_WIDTHS.get(one, "Stable Diffusion XL" if told else "Stable Diffusion 1.x or 2.x")
        for one, told in (
            (width or 0, is_told),
            (needed, variant.unet.addition_embed_type is not None),
        )
    )
    if theirs == ours:
        return  # what else is amiss, loading will say
    raise WeightsError(
        f"it is a ControlNet for {theirs}, and {variant.name} takes those for {ours}"
    )


def _own_transformers(unet: UNet2DConditionConfig, outline: Outline) -> dict[str, Any]:
    """Where a ControlNet attends to the prompt, and how deep.

    Empty if its levels are others, or it does not attend at all.
    """
    levels = count_in(outline, r"down_blocks\.(\d+)\.")
    if levels != len(unet.block_out_channels) or not any(".attn2." in name for name in outline):
        return {}
    down, _ = _transformer_layers(outline, levels)
    return {
        "cross_attention": tuple(
            f"down_blocks.{i}.attentions.0.norm.weight" in outline for i in range(levels)
        ),
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": None,
        "mid_block_type": _mid_block_type(outline),
    }


def told_controlnet(config: ControlNetConfig, told: Json) -> ControlNetConfig:
    """The sizes of a ControlNet with what its own ``config.json`` says and weights do not show."""
    if not told:
        return config
    levels = len(config.unet.block_out_channels)
    return replace(
        config,
        unet=replace(
            config.unet,
            attention_heads=_heads(told, levels),
            norm_num_groups=told.get("norm_num_groups", 32),
        ),
        controlnet_conditioning_channel_order=told.get(
            "controlnet_conditioning_channel_order", "rgb"
        ),
        global_pool_conditions=told.get("global_pool_conditions", False),
    )


def _heads(config: Json, levels: int) -> tuple[int, ...]:
    """Of each level. diffusers calls them dimensions, mistakenly."""
    heads = config.get("num_attention_heads")
    heads = config.get("attention_head_dim", 8) if heads is None else heads
    return tuple(heads) if isinstance(heads, list) else (heads,) * levels


def is_tiny_vae(outline: Outline) -> bool:
    """Whether these are the names of a tiny autoencoder, or of a half of it."""
    return "decoder.layers.0.weight" in outline or "encoder.layers.0.weight" in outline


def tiny_vae_config(outline: Outline, config: Json) -> AutoencoderTinyConfig:
    """The sizes of a tiny autoencoder; see `unet_config`."""
    latents = outline.get("decoder.layers.0.weight")
    channels = 4 if latents is None or latents.ndim < 2 else latents.shape[1]
    return AutoencoderTinyConfig(latent_channels=channels)


def _unet_config(outline: Outline, config: Json, *, out_channels: int) -> UNet2DConditionConfig:
    levels = range(count_in(outline, r"down_blocks\.(\d+)\."))
    channels = tuple(size_in(outline, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels)
    projection = _first(outline, r".*attentions\.0\.proj_in\.weight")
    linear = projection is not None and projection.ndim == 2
    context = _first(outline, r".*attn2\.to_k\.weight")
    down_layers, up_layers = _transformer_layers(outline, len(levels))
    found = UNet2DConditionConfig(
        in_channels=size_in(outline, "conv_in.weight", 1),
        out_channels=out_channels,
        block_out_channels=channels,
        cross_attention=tuple(
            f"down_blocks.{i}.attentions.0.norm.weight" in outline for i in levels
        ),
        attention_heads=tuple(max(n // HEAD_WIDTH, 1) for n in channels)
        if linear
        else (math.gcd(8, *channels),) * len(channels),
        layers_per_block=_alike(
            [count_in(outline, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]
        ),
        only_cross_attention=_alike([_attends_only_to_prompt(outline, i) for i in levels]),
        transformer_layers_per_block=down_layers,
        reverse_transformer_layers_per_block=up_layers,
        mid_block_type=_mid_block_type(outline),
        cross_attention_dim=0 if context is None else context.shape[1],
        use_linear_projection=linear,
        norm_num_groups=math.gcd(32, *channels),
        time_cond_proj_dim=size_in(outline, COND_PROJ, 1) if COND_PROJ in outline else None,
        addition_embed_type="text_time" if ADDED in outline else None,
        addition_time_embed_dim=ADDED_SINUSOIDS if ADDED in outline else None,
        projection_class_embeddings_input_dim=size_in(outline, ADDED, 1)
        if ADDED in outline
        else None,
    )
    if config:
        only = config.get("only_cross_attention")
        only = _alike(only) if isinstance(only, list) else only
        return replace(
            found,
            attention_heads=_heads(config, len(channels)),
            norm_num_groups=config.get("norm_num_groups", 32),
            only_cross_attention=found.only_cross_attention if only is None else only,
            addition_time_embed_dim=config.get(
                "addition_time_embed_dim", found.addition_time_embed_dim
            ),
        )
    unseen = {"attention_heads", "norm_num_groups", "addition_time_embed_dim"}
    for known in _known_configs(UNet2DConditionConfig):
        if _agree(known, found, unseen | VARYING):
            return replace(known, **{name: getattr(found, name) for name in VARYING})
    return found


def _transformer_layers(
    outline: Outline, levels: int
) -> tuple[TransformerLayers, TransformerLayers | None]:
    """``transformer_layers_per_block`` and its reverse, in as few numbers as say them."""
    pattern = re.compile(r"(\w+_block(?:s\.\d+)?)\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.")
    counts: dict[str, dict[int, int]] = {}  # of each block, of each of its transformers
    for match in map(pattern.match, outline):
        if match:
            layers = counts.setdefault(match[1], {})
            layers[int(match[2])] = max(layers.get(int(match[2]), 0), int(match[3]) + 1)

    def layers_of(block: str) -> int | tuple[int, ...] | None:
        numbers = tuple(number for _, number in sorted(counts.get(block, {}).items()))
        return numbers[0] if len(set(numbers)) == 1 else numbers or None

    middle = layers_of("mid_block")
    down = [layers_of(f"down_blocks.{i}") for i in range(levels)]
    up = [layers_of(f"up_blocks.{i}") for i in range(levels)]
    if down and down[-1] is None:
        down[-1] = middle
    known = {layers for layers in down if layers is not None}
    usual = known.pop() if len(known) == 1 else 1
    filled = tuple(usual if layers is None else layers for layers in down)
    simple = usual if set(filled) == {usual} and isinstance(usual, int) else filled
    backwards = filled[::-1]
    reverse = tuple(a if b is None else b for a, b in zip(backwards, up, strict=True))
    symmetrical = reverse == backwards and all(isinstance(one, int) for one in reverse)
    return simple, None if symmetrical or not any(up) else reverse


def _alike(of_levels: list[T]) -> T | tuple[T, ...]:
    """One value for all levels where they have the same."""
    return of_levels[0] if len(set(of_levels)) == 1 else tuple(of_levels)


def _attends_only_to_prompt(outline: Outline, level: int) -> bool:
    """Whether what should be a level's self-attention takes keys of another width than its own."""
    block = rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.0\.attn1\.to_k\.weight"
    keys = _first(outline, block)
    return keys is not None and keys.ndim == 2 and keys.shape[0] != keys.shape[1]


def _mid_block_type(outline: Outline) -> str | None:
    if "mid_block.attentions.0.norm.weight" in outline:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if "mid_block.resnets.0.conv1.weight" in outline else None


def vae_config(outline: Outline, config: Json) -> AutoencoderKLConfig:
    """The sizes of an autoencoder; see `unet_config`."""
    levels = range(count_in(outline, r"encoder\.down_blocks\.(\d+)\."))
    channels = tuple(
        size_in(outline, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels
    )
    found = AutoencoderKLConfig(
        in_channels=size_in(outline, "encoder.conv_in.weight", 1),
        out_channels=size_in(outline, "decoder.conv_out.weight", 0),
        latent_channels=size_in(outline, "post_quant_conv.weight", 0),
        block_out_channels=channels,
        layers_per_block=count_in(outline, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        norm_num_groups=math.gcd(32, *channels),
    )
    if config:
        return replace(
            found,
            norm_num_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", found.scaling_factor),
            force_upcast=bool(config.get("force_upcast", True)),  # as in diffusers
        )
    for known in _known_configs(AutoencoderKLConfig):
        if _agree(known, found, {"norm_num_groups", "scaling_factor", "force_upcast"}):
            return known
    return found


def text_config(outline: Outline, config: Json) -> CLIPTextConfig:
    """The sizes of a text encoder; see `unet_config`."""
    embedding = "text_model.embeddings"
    hidden = size_in(outline, f"{embedding}.token_embedding.weight", 1)
    layer = "text_model.encoder.layers.0"
    found = CLIPTextConfig(
        vocab_size=size_in(outline, f"{embedding}.token_embedding.weight", 0),
        hidden_size=hidden,
        intermediate_size=size_in(outline, f"{layer}.mlp.fc1.weight", 0),
        num_hidden_layers=count_in(outline, r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(hidden // HEAD_WIDTH, 1),
        max_position_embeddings=size_in(outline, f"{embedding}.position_embedding.weight", 0),
        projection_dim=size_in(outline, PROJECTION, 0) if PROJECTION in outline else None,
    )
    if config:
        return replace(
            found,
            num_attention_heads=config.get("num_attention_heads", 8),  # as in transformers
            hidden_act=config.get("hidden_act", "quick_gelu"),
        )
    for known in _known_configs(CLIPTextConfig):
        if _agree(known, found, {"num_attention_heads", "hidden_act"}):
            return known
    return found


def is_known(config: object) -> bool:
    """Whether a model's sizes are those of some variant, but for what varies within one.

    Those of a T2I-Adapter are all seen.
    """
    if isinstance(config, T2IAdapterConfig):
        return True
    if isinstance(config, ControlNetConfig):
        config = config.unet
    return any(_agree(known, config, VARYING) for known in _known_configs(type(config)))


def _known_configs(kind: type[C]) -> list[C]:
    """The sizes of that class that variants have."""
    known = [c for v in VARIANTS.values() for c in (*v.configs.values(), v.tiny_vae)]
    known += SMALL_UNETS
    return [config for config in known if type(config) is kind]


GUESSED = (
    "its sizes are of no known model, and attention heads, norm groups and activation cannot be "
    "seen in weights: assuming usual ones; a diffusers folder with its config.json files says them"
)
"""What to tell where neither `is_known` nor a ``config.json`` says the sizes."""


def _agree(a: object, b: object, unseen: set[str]) -> bool:
    """Whether two configurations are the same but for what shapes do not show."""
    return all(value == vars(b)[name] for name, value in vars(a).items() if name not in unseen)


def is_of_2x(unet: UNet2DConditionConfig) -> bool:
    """Whether a UNet that is told nothing but the prompt is one of Stable Diffusion 2.x."""
    return unet.use_linear_projection or unet.cross_attention_dim == WIDTH_OF_2X


def count_in(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the start of a name."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _first(outline: Outline, pattern: str) -> Tensor | None:
    return next((tensor for name, tensor in outline.items() if re.match(pattern, name)), None)


def size_in(outline: Outline, name: str, dimension: int) -> int:
    """A size of a tensor. Raises ``WeightsError`` if there is no such tensor."""
    tensor = outline.get(name)
    if tensor is None or tensor.ndim <= dimension:
        raise WeightsError(f"{name} is missing or of an odd shape")
    return tensor.shape[dimension]


# ------------------------------------------------------------------------------ diffusers' JSON


def noise_config(config: Json, default: NoiseConfig) -> NoiseConfig:
    """What a ``scheduler_config.json`` says of the noise and the prediction.

    Args:
        config: as `sdpy.zoo.schemas.check_scheduler` gives it; what is missing there has the
            default of its class in diffusers.
        default: where there is no such file.

    Raises:
        UsageError: the numbers of timesteps and of trained betas differ.
    """
    if not config:
        return default
    name = config.get("_class_name", "")
    start, end = (0.00085, 0.012) if name in _SCALED_BETAS else (0.0001, 0.02)
    scaled = name in _SCALED_SCHEDULES
    prediction = config.get("prediction_type", "epsilon")
    betas = config.get("trained_betas")
    return NoiseConfig(
        num_train_timesteps=config.get("num_train_timesteps", default.num_train_timesteps),
        beta_start=config.get("beta_start", start),
        beta_end=config.get("beta_end", end),
        prediction_type=prediction,
        rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr", False))
        and prediction != "epsilon",
        beta_schedule=config.get("beta_schedule", "scaled_linear" if scaled else "linear"),
        trained_betas=None if betas is None else tuple(betas),
    )


# The defaults of these classes of diffusers are not those of the others.
_SCALED_SCHEDULES = ("LCMScheduler", "TCDScheduler")
_SCALED_BETAS = (
    *_SCALED_SCHEDULES,
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
