"""LoRAs for Stable Diffusion XL beside those that diffusers and peft merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Lora, check_loras, merge_loras, write_checkpoint
from sdpy.errors import WeightsError
from sdpy.zoo.classes import make_model
from sdpy.zoo.variants import SD15, SDXL
from support.compare import MODEL_TOLERANCE, normal, relative_error
from support.tiny_xl import TINY_XL, reference_pipeline, tiny_xl_model

pytest.importorskip("peft")

RANK = 3
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
ENDS = ("to_q", "to_out.0", "proj_in", "conv1", "q_proj", "fc1")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def layers(component: str) -> Iterator[tuple[str, Tensor]]:
    for name, module in tiny_xl_model(TINY_XL, component).named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith(ENDS):
            yield name, module.weight


def factors(component: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    for i, (name, weight) in enumerate(layers(component)):
        C_out, C_in, *kernel = weight.shape
        up = normal(C_out, RANK, *(1 for _ in kernel), seed=500 + i)
        yield name, normal(RANK, C_in, *kernel, seed=i) / 5, up


def of_diffusers() -> dict[str, Tensor]:
    tensors = {}
    for component in COMPONENTS:
        for name, down, up in factors(component):
            # transformers 5 leaves this out in the first, and not in the second.
            known = name.removeprefix("text_model.") if component == "text_encoder" else name
            layer = f"{component}.{known}"
            tensors |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    return tensors


def of_kohya() -> dict[str, Tensor]:
    """The UNet's layers in the original's names, for this UNet of one layer a block."""
    starts = {
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "down_blocks.2.resnets.0": "input_blocks.5.0",
        "down_blocks.2.attentions.0": "input_blocks.5.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        **{
            f"up_blocks.{i}.{kind}.{j}": f"output_blocks.{2 * i + j}.{k}"
            for i in range(3)
            for j in range(2)
            for k, kind in enumerate(("resnets", "attentions"))
        },
    }
    tensors = {}
    for component in COMPONENTS:
        for name, down, up in factors(component):
            start = next((one for one in starts if name.startswith(f"{one}.")), None)
            theirs = name if start is None else starts[start] + name.removeprefix(start)
            theirs = theirs.replace(".conv1", ".in_layers.2")
            layer = KOHYA[component] + theirs.replace(".", "_")
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            tensors[f"{layer}.alpha"] = torch.tensor(float(RANK))
    return tensors


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What diffusers merges."""
    folder = tmp_path_factory.mktemp("xl")
    write_checkpoint(folder / "lora.safetensors", of_diffusers())
    pipeline = reference_pipeline(diffusers.StableDiffusionXLPipeline, TINY_XL, folder)
    pipeline.load_lora_weights(folder, weight_name="lora.safetensors", adapter_name="a")
    pipeline.set_adapters(["a"], [0.7])
    pipeline.fuse_lora(components=list(COMPONENTS), adapter_names=["a"])
    pipeline.unload_lora_weights()
    return {name: getattr(pipeline, name).state_dict() for name in COMPONENTS}


@pytest.mark.parametrize("form", [of_diffusers, of_kohya])
def test_both_text_encoders_and_the_unet(
    form: object, tmp_path: Path, expected: dict[str, dict[str, Tensor]]
) -> None:
    write_checkpoint(tmp_path / "lora.safetensors", form())  # type: ignore[operator]
    loras = [Lora(tmp_path / "lora.safetensors", 0.7)]
    models = {name: tiny_xl_model(TINY_XL, name) for name in COMPONENTS}
    check_loras(loras, models)
    for name, model in models.items():
        merge_loras(loras, name, model)
        theirs = {k.removeprefix("text_model."): v for k, v in expected[name].items()}
        changed = {f"{layer}.weight" for layer, _ in layers(name)}
        before = tiny_xl_model(TINY_XL, name).state_dict()
        for key, tensor in model.state_dict().items():
            other = theirs[key.removeprefix("text_model.")]
            assert relative_error(tensor, other) <= MODEL_TOLERANCE, key
            assert (key in changed) != torch.equal(tensor, before[key]), key


def families() -> dict[str, dict[str, nn.Module]]:
    return {
        variant.name: {
            name: make_model(name, config)
            for name, config in variant.configs.items()
            if name in COMPONENTS
        }
        for variant in (SD15, SDXL)
    }


def context_lora(width: int) -> dict[str, Tensor]:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {
        f"{layer}.lora_down.weight": torch.ones(2, width),
        f"{layer}.lora_up.weight": torch.ones(640, 2),
    }


def text_lora(prefix: str, width: int) -> dict[str, Tensor]:
    layer = f"{prefix}text_model_encoder_layers_0_mlp_fc1"
    return {
        f"{layer}.lora_down.weight": torch.ones(2, width),
        f"{layer}.lora_up.weight": torch.ones(4 * width, 2),
    }


OTHERS: dict[str, tuple[str, dict[str, Tensor], str, str]] = {
    "1.5 on XL": ("sdxl", context_lora(768), "Stable Diffusion 1.x", "Stable Diffusion XL"),
    "2.x on XL": ("sdxl", context_lora(1024), "Stable Diffusion 2.x", "Stable Diffusion XL"),
    "XL on 1.5": ("sd15", context_lora(2048), "Stable Diffusion XL", "Stable Diffusion 1.x"),
    "text encoder of 1.5 on XL": (
        "sdxl",
        text_lora("lora_te_", 768),
        "Stable Diffusion 1.x or 2.x",
        "Stable Diffusion XL",
    ),
    "second text encoder on 1.5": (
        "sd15",
        text_lora("lora_te2_", 1280),
        "Stable Diffusion XL",
        "Stable Diffusion 1.x",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_one_for_another_family_names_both(case: str, tmp_path: Path) -> None:
    variant, tensors, theirs, ours = OTHERS[case]
    write_checkpoint(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(WeightsError) as error:
        check_loras([Lora(tmp_path / "lora.safetensors")], families()[variant])
    message = str(error.value)
    assert f"a LoRA for {theirs}, but the model is a {ours};" in message
    assert "\n" not in message


def test_an_adapter_that_does_not_say_for_which_text_encoder(tmp_path: Path) -> None:
    """Their widths tell; where these are the same, nothing does."""
    layer = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
    write_checkpoint(
        tmp_path / "adapter_model.safetensors",
        {f"{layer}.lora_A.weight": normal(2, 48), f"{layer}.lora_B.weight": normal(96, 2)},
    )
    models = {name: tiny_xl_model(TINY_XL, name) for name in COMPONENTS}
    before = {name: model.state_dict() for name, model in models.items()}
    check_loras([Lora(tmp_path)], models)
    for name, model in models.items():
        merge_loras([Lora(tmp_path)], name, model)
        same = all(torch.equal(before[name][key], t) for key, t in model.state_dict().items())
        assert same == (name != "text_encoder_2")
    alike = replace(TINY_XL.configs["text_encoder_2"], projection_dim=None)
    models["text_encoder"] = make_model("text_encoder", alike)
    with pytest.raises(WeightsError, match="whether for text_encoder or text_encoder_2"):
        check_loras([Lora(tmp_path)], models)
