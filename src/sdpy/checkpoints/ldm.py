"""The names of the original "latent diffusion" programs (LDM), which most people's files have.

There, one file holds a whole Stable Diffusion, each component under a prefix, and the UNet's
layers are numbered straight through. Which number is what follows from the structure of the blocks
alone, so the tables are made here from a few numbers that can be read off the names of either side.

A table pairs modules, the original's with ours; names below a module are the same on both sides
unless a longer entry says otherwise. Text encoders, which these programs have from elsewhere, are
in ``clip_names``; T2I-Adapters, which others made for them, in ``t2i_names``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from sdpy.checkpoints import t2i_names
from sdpy.checkpoints.limits import check_blocks

# What else such files hold, of no use for generating images.
DROPPED_PREFIXES: tuple[str, ...] = (
    "model_ema.",
    "cond_stage_model.logit_scale",
    "conditioner.embedders.0.logit_scale",
    "first_stage_model.loss.",
    "loss.",
    "posterior_",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "embedding_manager.",
    "denoiser.",
)
DROPPED: frozenset[str] = frozenset(
    {
        "betas",
        "logvar",
        "lvlb_weights",
        "scale_factor",
        # Empty tensors by which some files tell what the UNet predicts.
        "v_pred",
        "ztsnr",
    }
)

# A ResNet of the UNet. Its transformers have the same names on both sides.
_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# The image that a ControlNet follows goes through eight convolutions; every second entry of the
# original's list is an activation.
_CONTROL_ENDS = {
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    **{f"input_hint_block.{2 * i + 2}": f"controlnet_cond_embedding.blocks.{i}" for i in range(6)},
    "input_hint_block.14": "controlnet_cond_embedding.conv_out",
    "middle_block_out.0": "controlnet_mid_block",
}
_VAE_ENDS = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    # Below it, some programs' files have other names than these.
    "mid.attn_1": "mid_block.attentions.0",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "norm_out": "conv_norm_out",
}
Modules = dict[str, str]
"""From a module's name there to its name here."""


def has_tables(role: str) -> bool:
    """Whether components of that role have other names in the original programs."""
    return role in _ORIGINAL_MODULES


def to_ours(role: str, names: Collection[str]) -> dict[str, str]:
    """Our names for those of the original's that a table knows, less the component's prefix.

    Args:
        role: of the component. One that has no tables has the same names on both sides.
        names: the original's.
    """
    if role not in _ORIGINAL_MODULES:
        return {name: name for name in names}
    modules = _ORIGINAL_MODULES[role](names)
    renamed = {name: _rename(name, modules) for name in names}
    return {name: ours for name, ours in renamed.items() if ours is not None}


def to_original(role: str, names: Collection[str]) -> dict[str, str]:
    """The original's names, less the component's prefix, each with ours.

    Args:
        role: of the component. One that has no tables has the same names on both sides.
        names: ours.

    Raises:
        ValueError: a name that no table knows.
    """
    if role not in _OUR_MODULES:
        return {name: name for name in names}
    reverse = {ours: theirs for theirs, ours in _OUR_MODULES[role](names).items()}
    renamed: dict[str, str] = {}
    for name in names:
        theirs = _rename(name, reverse)
        if theirs is None:
            raise ValueError(name)
        renamed[theirs] = name
    return renamed


# ------------------------------------------------------------------------------------- tables


def unet_modules(attends: Sequence[bool], layers: Sequence[int]) -> Modules:
    """The modules of a UNet or a ControlNet.

    Args:
        attends: of each level, from the highest resolution down, whether it attends to the prompt.
        layers: ResNets of each level going down; going up there is one more.
    """
    return dict(_unet_modules(attends, layers))


def _unet_modules(attends: Sequence[bool], layers: Sequence[int]) -> Iterator[tuple[str, str]]:
    yield from _UNET_ENDS.items()
    yield from _CONTROL_ENDS.items()
    last = len(attends) - 1

    n = 1
    for i, attend in enumerate(attends):
        for j in range(layers[i]):
            yield from _resnet(f"input_blocks.{n}.0", f"down_blocks.{i}.resnets.{j}")
            if attend:
                yield f"input_blocks.{n}.1", f"down_blocks.{i}.attentions.{j}"
            n += 1
        if i < last:
            yield f"input_blocks.{n}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            n += 1
    for k in range(n):
        yield f"zero_convs.{k}.0", f"controlnet_down_blocks.{k}"

    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield "middle_block.1", "mid_block.attentions.0"
    yield from _resnet("middle_block.2", "mid_block.resnets.1")

    n = 0
    for i, attend in enumerate(reversed(attends)):
        for j in range(layers[last - i] + 1):
            yield from _resnet(f"output_blocks.{n}.0", f"up_blocks.{i}.resnets.{j}")
            if attend:
                yield f"output_blocks.{n}.1", f"up_blocks.{i}.attentions.{j}"
            if j == layers[last - i] and i < last:
                place = 2 if attend else 1  # after the transformer, where there is one
                yield f"output_blocks.{n}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv"
            n += 1


def _resnet(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for a, b in _UNET_RESNET.items():
        yield f"{theirs}.{a}", f"{ours}.{b}"


def _original_unet_structure(names: Collection[str]) -> tuple[list[bool], list[int]]:
    """What `unet_modules` takes. Levels end with a change of resolution (``op``)."""
    attends, layers = [False], [0]
    for n in range(1, _count(names, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{n}.0.op.weight" in names:
            attends.append(False)
            layers.append(0)
        else:
            attends[-1] |= f"input_blocks.{n}.1.norm.weight" in names
            layers[-1] += 1
    return attends, layers


def _our_unet_structure(names: Collection[str]) -> tuple[list[bool], list[int]]:
    """What `unet_modules` takes."""
    levels = range(_count(names, r"down_blocks\.(\d+)\."))
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in names for i in levels]
    return attends, [_count(names, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]


def vae_modules(levels: int, layers: int) -> Modules:
    """The modules of an autoencoder.

    Args:
        levels: resolutions.
        layers: ResNets of a level of the encoder; the decoder has one more.
    """
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{theirs}": f"{half}.{ours}" for theirs, ours in _VAE_ENDS.items()}
    for i in range(levels):
        # The original numbers the decoder's levels from the highest resolution, we from the lowest.
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{levels - 1 - i}"
        resnets = [(f"encoder.down.{i}.block.{j}", f"{down}.resnets.{j}") for j in range(layers)]
        resnets += [(f"decoder.up.{i}.block.{j}", f"{up}.resnets.{j}") for j in range(layers + 1)]
        modules |= dict(resnets)
        modules |= {f"{a}.nin_shortcut": f"{b}.conv_shortcut" for a, b in resnets}
        modules[f"encoder.down.{i}.downsample"] = f"{down}.downsamplers.0"
        modules[f"decoder.up.{i}.upsample"] = f"{up}.upsamplers.0"
    return modules


def _rename(name: str, modules: Modules) -> str | None:
    """The name with the longest module in it replaced; None if there is none in the table."""
    module = name
    while module:
        if module in modules:
            return modules[module] + name.removeprefix(module)
        module = module.rpartition(".")[0]
    return None


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the start of a name."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _original_adapter_modules(names: Collection[str]) -> Modules:
    check_blocks(_count(names, r"(?:adapter\.)?body\.(\d+)\."), names)
    return t2i_names.original_modules(names)


def _our_adapter_modules(names: Collection[str]) -> Modules:
    check_blocks(_count(names, r"adapter\.body\.\d+\.resnets\.(\d+)\."), names)
    return t2i_names.our_modules(names)


def _original_unet_modules(names: Collection[str]) -> Modules:
    return _checked_unet_modules(names, *_original_unet_structure(names))


def _our_unet_modules(names: Collection[str]) -> Modules:
    return _checked_unet_modules(names, *_our_unet_structure(names))


def _checked_unet_modules(
    names: Collection[str], attends: Sequence[bool], layers: Sequence[int]
) -> Modules:
    check_blocks(sum(layers), names)
    return unet_modules(attends, layers)


def _original_vae_modules(names: Collection[str]) -> Modules:
    levels, layers = r"encoder\.down\.(\d+)\.", r"encoder\.down\.0\.block\.(\d+)\."
    return _checked_vae_modules(names, _count(names, levels), _count(names, layers))


def _our_vae_modules(names: Collection[str]) -> Modules:
    levels = r"encoder\.down_blocks\.(\d+)\."
    layers = r"encoder\.down_blocks\.0\.resnets\.(\d+)\."
    return _checked_vae_modules(names, _count(names, levels), _count(names, layers))


def _checked_vae_modules(names: Collection[str], levels: int, layers: int) -> Modules:
    check_blocks(levels * layers, names)
    return vae_modules(levels, layers)


# The table of modules for the names on one side, by the role of the component.
_ORIGINAL_MODULES: dict[str, Callable[[Collection[str]], Modules]] = {
    "unet": _original_unet_modules,
    "controlnet": _original_unet_modules,
    "t2i_adapter": _original_adapter_modules,
    "vae": _original_vae_modules,
}
_OUR_MODULES: dict[str, Callable[[Collection[str]], Modules]] = {
    "unet": _our_unet_modules,
    "controlnet": _our_unet_modules,
    "t2i_adapter": _our_adapter_modules,
    "vae": _our_vae_modules,
}
