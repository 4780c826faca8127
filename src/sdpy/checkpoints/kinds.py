"""A guess at what a set of weights is, from telltale names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Fragments of names that settle the matter, in this order.
_TELLTALES: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.", "a whole Stable Diffusion checkpoint in one file (original names)"),
    ("lora_", "a LoRA"),
    (".lora.", "a LoRA"),
    ("down_block_add_embeds.", "an adapter"),
    ("style_embedding", "a T2I-Adapter of styles, which sdpy does not run"),
    ("vision_model.", "a whole CLIP model, text and vision"),
    ("shared.weight", "a T5 text encoder"),
)
_CONTEXT_WIDTHS: dict[int, str] = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
_TEXT_WIDTHS: dict[int, str] = {
    768: "as in Stable Diffusion 1.x",
    1024: "as in Stable Diffusion 2.x",
    1280: "as in Stable Diffusion XL",
}


def guess_kind(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """What weights of these names and shapes look like, as "a VAE", or None.

    Knows the component, and of a UNet its input channels and, by its context width, its family.
    """
    if not shapes:
        return "an empty file"
    for fragment, meaning in _TELLTALES:
        if any(fragment in name for name in shapes):
            return meaning
    return (
        _guess_controlnet(shapes)
        or _guess_t2i_adapter(shapes)
        or _guess_tiny_vae(shapes)
        or _guess_unet(shapes)
        or _guess_text_encoder(shapes)
        or _guess_vae(shapes)
    )


def _guess_controlnet(shapes: Mapping[str, Sequence[int]]) -> str | None:
    if not any("controlnet_cond_embedding." in name for name in shapes):
        return None
    types = shapes.get("task_embedding", ())
    kind = f"a ControlNet-Union of {types[0]} control types" if types else "a ControlNet"
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2 and shape[1] in _CONTEXT_WIDTHS:
            return f"{kind} for {_CONTEXT_WIDTHS[shape[1]]}"
    return kind


# Channels of the image with all pixels of a position side by side, 8 or 16 along each side, in
# colour and in grey: which adapter that is.
_ADAPTERS: dict[int, str] = {
    3 * 64: "a T2I-Adapter for Stable Diffusion 1.x",
    64: "a T2I-Adapter for Stable Diffusion 1.x that is shown grey images",
    3 * 256: "a T2I-Adapter for Stable Diffusion XL",
    256: "a T2I-Adapter for Stable Diffusion XL that is shown grey images",
}


def _guess_t2i_adapter(shapes: Mapping[str, Sequence[int]]) -> str | None:
    plain = {name.removeprefix("adapter."): shape for name, shape in shapes.items()}
    blocks = (
        "body.0.block1.weight",
        "body.0.body.0.block1.weight",
        "body.0.resnets.0.block1.weight",
    )
    if not any(name in plain for name in blocks):
        return None
    first = plain.get("conv_in.weight", plain.get("body.0.in_conv.weight", ()))
    kind = _ADAPTERS.get(first[1], "a T2I-Adapter") if len(first) == 4 else "a T2I-Adapter"
    return kind if "conv_in.weight" in plain else kind.replace("a T2I", "a light T2I", 1)


def _guess_tiny_vae(shapes: Mapping[str, Sequence[int]]) -> str | None:
    decoder, encoder = (shapes.get(f"{half}.layers.0.weight") for half in ("decoder", "encoder"))
    if "encoder.layers.1.conv.0.weight" not in shapes and "decoder.layers.2.conv.0.weight" not in (
        shapes
    ):
        return None
    if decoder is not None and encoder is None:
        return "the decoder of a tiny VAE (TAESD), without the encoder that belongs beside it"
    if encoder is not None and decoder is None:
        return "the encoder of a tiny VAE (TAESD), without the decoder that belongs beside it"
    channels = decoder[1] if decoder is not None and len(decoder) == 4 else 4
    other = "" if channels == 4 else f" for latents of {channels} channels"
    families = {16: " (Stable Diffusion 3, FLUX), not for Stable Diffusion 1, 2 and XL"}
    return f"a tiny VAE (TAESD){other}{families.get(channels, '')}"


def _guess_unet(shapes: Mapping[str, Sequence[int]]) -> str | None:
    if "time_embedding.linear_1.weight" not in shapes or "conv_in.weight" not in shapes:
        return None
    conv_in = shapes["conv_in.weight"]
    channels = f" with {conv_in[1]} input channels" if len(conv_in) == 4 else ""
    if "time_embedding.cond_proj.weight" in shapes:
        channels += " and a guidance embedding (LCM)"
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            family = _CONTEXT_WIDTHS.get(shape[1])
            owner = f"a {family} UNet" if family else f"a UNet of context width {shape[1]}"
            return owner + channels
    return "a UNet" + channels


def _guess_text_encoder(shapes: Mapping[str, Sequence[int]]) -> str | None:
    for name, shape in shapes.items():
        if name.endswith("embeddings.token_embedding.weight") and len(shape) == 2:
            like = f", {_TEXT_WIDTHS[shape[1]]}" if shape[1] in _TEXT_WIDTHS else ""
            return f"a text encoder ({shape[1]} wide{like})"
    return None


def _guess_vae(shapes: Mapping[str, Sequence[int]]) -> str | None:
    halves = [half for half in ("encoder", "decoder") if f"{half}.conv_in.weight" in shapes]
    if len(halves) == 2:
        return "a VAE"
    return f"the {halves[0]} of a VAE" if halves else None
