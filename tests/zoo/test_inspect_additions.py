"""What `inspect` says of adapters and textual inversions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import write_checkpoint
from sdpy.zoo.inspect import inspect_weights

OLD = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
PEFT = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def zeros(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


HADA = {f"{KOHYA}.hada_w{i}_{x}": (4, 4) for i in (1, 2) for x in "ab"}
FILES: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "old diffusers": (
        zeros(**{f"{OLD}.down.weight": (4, 768), f"{OLD}.up.weight": (320, 4)}),
        "a LoRA for Stable Diffusion 1.x: layers: 1 of the UNet",
        "diffusers'",
    ),
    "two kinds for XL": (
        zeros(
            **{
                **HADA,
                f"{KOHYA}.hada_w1_b": (4, 2048),
                f"{TEXT}.lora_up.weight": (8, 2),
                f"{TEXT}.lora_down.weight": (2, 8),
            }
        ),
        "a LoRA and a LoHa for Stable Diffusion XL: layers: 1 of the second text encoder, 1 of the "
        "UNet",
        "kohya's",
    ),
    "DoRA": (
        zeros(
            **{
                f"{PEFT}.lora_A.weight": (4, 1024),
                f"{PEFT}.lora_B.weight": (320, 4),
                f"{PEFT}.lora_magnitude_vector": (320,),
            }
        ),
        "a DoRA for Stable Diffusion 2.x: layers: 1 of the UNet",
        "peft's",
    ),
    "BOFT": (zeros(**{f"{KOHYA}.oft_blocks": (2, 3, 4, 4)}), "a BOFT: layers:", "kohya's"),
    "OFT": (zeros(**{f"{KOHYA}.oft_blocks": (3, 4, 4)}), "an OFT: layers:", "kohya's"),
    "IA3": (
        zeros(**{f"{KOHYA}.on_input": (1,), f"{KOHYA}.weight": (3,)}),
        "an IA3, which sdpy cannot merge",
        "kohya's",
    ),
    "cloneofsimo": (
        zeros(**{"unet:0:up": (4, 2), "unet:0:down": (2, 4)}),
        "cloneofsimo's format",
        "",
    ),
    "one word": (
        zeros(emb_params=(3, 768)),
        "a textual inversion, 3 vectors, 768 wide (Stable Diffusion 1.x)",
        "",
    ),
    "two encoders": (
        zeros(clip_l=(1, 768), clip_g=(1, 1280)),
        "a textual inversion, 1 vector, 768 and 1280 wide (Stable Diffusion XL)",
        "",
    ),
    "several words": (
        zeros(**{"<a>": (2, 768), "<b>": (768,)}),
        "textual inversions of 2 words, 3 vectors, 768 wide",
        "",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_added_to_a_model(case: str, tmp_path: Path) -> None:
    tensors, summary, dialect = FILES[case]
    write_checkpoint(tmp_path / "x.safetensors", tensors)
    (one,) = inspect_weights(tmp_path / "x.safetensors").components
    assert one.name is None and not one.problems
    assert one.summary is not None and summary in one.summary
    assert dialect in one.weights.part.dialect
    assert one.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_the_folder_of_a_lora(tmp_path: Path) -> None:
    tensors = FILES["DoRA"][0]
    write_checkpoint(tmp_path / "adapter_model.safetensors", tensors)
    (one,) = inspect_weights(tmp_path).components
    assert one.summary is not None and one.summary.startswith("a DoRA")
