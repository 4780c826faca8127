"""What a file is that cannot be merged, and for which model, told by names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from sdpy.checkpoints.adapters.dora import DoRA
from sdpy.checkpoints.adapters.names import Owner, split_name
from sdpy.checkpoints.adapters.oft import BOFT, OFT
from sdpy.checkpoints.adapters.registry import ENDINGS, KINDS, NDIM_OF_BOFT, is_adapter
from sdpy.components import components_with_role, label_of

# Patterns of names that tell what a file is, in this order.
OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r".*\.on_input$|.*\.ia3_l$", "an IA3, which sdpy cannot merge"),
    (r".*\.[ab][12]\.weight$", "a GLoRA, which sdpy cannot merge"),
    (r".*\.boft_[RPs]\b", "a BOFT of peft, which sdpy cannot merge"),
    (r".*\.oft_R\b|.*\.oft_r\b", "an OFT of peft, which sdpy cannot merge"),
    (r".*\.oft_diag$", "an OFT of kohya's first form, which sdpy cannot merge"),
    (
        r".*\.bias_(indices|values|size)$",
        "a LoCon with sparse differences, which sdpy cannot merge",
    ),
    (r".*\.lora_embedding_[AB]", "a LoRA of an embedding, which sdpy cannot merge"),
    (r".*\bvera_lambda_", "a VeRA of peft, which sdpy cannot merge"),
    (
        r"(unet|text_encoder):\d+:(up|down)$",
        "a LoRA in cloneofsimo's format, which does not say whose layers they are",
    ),
    (r"lllite_", "a ControlNet-LLLite, which sdpy cannot use"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter, which sdpy cannot use"),
    (r"lora_unet_double_blocks|lora_unet_single_blocks", "a LoRA for FLUX"),
    (r"lora_te3_|text_encoder_3\.|lora_unet_joint_blocks", "a LoRA for Stable Diffusion 3"),
    (
        r"(base_model\.model\.)?(diffusion_model\.|lora_)?(single_)?transformer[._]",
        "a LoRA for a diffusion transformer (FLUX, SD 3, ...)",
    ),
    (r"lora_prior_", "a LoRA for Stable Cascade"),
)

XL = "Stable Diffusion XL"
CONTEXT_WIDTHS: dict[int, str] = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: XL,
    1280: "the refiner of Stable Diffusion XL",
}
_CONTEXT_LAYER = re.compile(
    r"attn2[._](processor\.)?to_k.*(down|lora_A|hada_w1_b|lokr_w2_b|diff|dora_scale)"
)


def guess_adapter(outline: Mapping[str, Tensor]) -> str | None:
    """What a file looks like that is of no kind in the table, or for another model."""
    for pattern, meaning in OTHER_KINDS:
        if any(re.match(pattern, name) for name in outline):
            return meaning
    family = guess_family(outline)
    if family is not None:
        return f"a LoRA for {family}"
    if not any(name.endswith(tuple(ENDINGS)) for name in outline):
        return "no LoRA at all"
    return None


def guess_family(outline: Mapping[str, Tensor]) -> str | None:
    """For which family of models an adapter is, where it tells.

    By its layers for a second text encoder, or by how wide the text is that others look at.
    """
    owners = {split_name(name)[0].component for name in outline}
    if "text_encoder_2" in owners:
        return XL
    for name, tensor in outline.items():
        if _CONTEXT_LAYER.search(name) and tensor.ndim >= 2:
            return CONTEXT_WIDTHS.get(tensor.shape[1])
    return None


def model_family(models: Mapping[str, nn.Module]) -> str | None:
    """The family of models, by how wide the text is that the UNet looks at."""
    config = getattr(models.get("unet"), "config", None)
    return CONTEXT_WIDTHS.get(getattr(config, "cross_attention_dim", 0))


def describe_adapter(outline: Mapping[str, Tensor]) -> str | None:
    """What an adapter is, in words; None for what is none."""
    for pattern, meaning in OTHER_KINDS:
        if any(re.match(pattern, name) for name in outline):
            return meaning
    if not is_adapter(outline):
        return None
    endings = {ending for ending in ENDINGS if any(name.endswith(ending) for name in outline)}
    kinds = [one.kind for one in KINDS if not endings.isdisjoint(one.endings)]
    if not endings.isdisjoint(DoRA.endings):
        kinds = [DoRA.kind]
    elif any(tensor.ndim == NDIM_OF_BOFT for tensor in _blocks(outline)):
        kinds.remove(OFT.kind)
    elif BOFT.kind in kinds:
        kinds.remove(BOFT.kind)
    family = guess_family(outline)
    layers = dict.fromkeys(split_layer(name) for name in outline)  # in the file's order
    owners = Counter(owner for owner, _ in filter(None, layers))
    parts = [f"{owners[owner]} of the {_label(owner)}" for owner in owners]
    return (
        " and ".join(kinds or ["biases"])
        + (f" for {family}" if family else "")
        + (f": layers: {', '.join(parts)}" if parts else "")
    )


def adapter_dialect(outline: Mapping[str, Tensor]) -> str:
    """Whose names an adapter's are."""
    if any(name.startswith(("lora_", "lycoris_")) for name in outline):
        return "kohya's"
    return "peft's" if any(name.startswith("base_model.") for name in outline) else "diffusers'"


def split_layer(name: str) -> tuple[Owner, str] | None:
    """Whose layer a tensor is for, and which; None for what is for none."""
    ending = max((one for one in ENDINGS if name.endswith(one)), key=len, default=None)
    if ending is None:
        return None
    owner, rest = split_name(name)
    return owner, rest.removesuffix(ending)


def _blocks(outline: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in outline.items() if name.endswith(".oft_blocks")]


def _label(owner: Owner) -> str:
    names = [one.name for one in components_with_role(owner.role)]
    return label_of(owner.component if owner.component is not None else names[0])
