"""LoRA: small changes to a model's weights, merged into them when the model is loaded.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), equation 3; for
convolutions as LyCORIS's LoCon (Yeh et al., 2023).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sdpy.checkpoints.base import Checkpoint, printable
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.errors import WeightsError

Change = Callable[[Tensor], Tensor]
"""From a weight to what is to be in its place."""


@dataclass(frozen=True)
class Lora:
    """A LoRA's file and how much of it to add: 0 nothing, 1 as it was trained, below 0 against."""

    path: Path
    weight: float = 1.0


# How names end, and which of a layer's tensors that is. From top to bottom: kohya, peft, then
# diffusers' forms from the newest to the oldest.
ROLES: dict[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}
# How names begin, and the model that is meant. kohya writes the rest with "_" for ".".
PARTS: dict[str, str] = {
    "unet.base_model.model.": "unet",
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.base_model.model.": "text_encoder",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "base_model.model.text_model.": "text_encoder",
    "base_model.model.": "unet",
    "text_model.": "text_encoder",
    # The first LoRAs of diffusers held the UNet alone, without saying so.
    "": "unet",
}
# How diffusers named layers until 0.17, by the ends of the names.
OLD_LAYERS: dict[str, str] = {
    ".processor.to_q": ".to_q",
    ".processor.to_k": ".to_k",
    ".processor.to_v": ".to_v",
    ".processor.to_out": ".to_out.0",
    ".self_attn.to_q": ".self_attn.q_proj",
    ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj",
    ".self_attn.to_out": ".self_attn.out_proj",
    ".to_out": ".to_out.0",
}
# Fragments of names that tell what a file is that does not fit.
OTHER_KINDS: dict[str, str] = {
    "hada_": "a LoHa, which sdpy cannot merge",
    "lokr_": "a LoKr, which sdpy cannot merge",
    "dora_scale": "a DoRA, which sdpy cannot merge",
    "lora_magnitude_vector": "a DoRA, which sdpy cannot merge",
    "lora_te2_": "a LoRA for Stable Diffusion XL",
    "text_encoder_2.": "a LoRA for Stable Diffusion XL",
    "lora_unet_double_blocks": "a LoRA for FLUX",
    "transformer.": "a LoRA for a diffusion transformer (FLUX, SD 3, ...)",
}
CONTEXT_WIDTHS: dict[int, str] = {
    768: "a LoRA for Stable Diffusion 1.x",
    1024: "a LoRA for Stable Diffusion 2.x",
    2048: "a LoRA for Stable Diffusion XL",
}
METADATA = "lora_adapter_metadata"
_SHOWN = 3


def check_loras(loras: Iterable[Lora], models: Mapping[str, nn.Module]) -> None:
    """Check that every tensor of the files has a place, reading names and shapes alone.

    Args:
        loras: the files.
        models: "unet" and "text_encoder", which may be on the meta device.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    for lora in loras:
        _LoraFile(lora.path).check(models)


def merge_loras(loras: Iterable[Lora], part: str, model: nn.Module) -> None:
    """Add the LoRAs' changes to the weights of a loaded model, layer by layer.

    Weights that no LoRA touches stay the tensors that they are, memory-mapped ones included.

    Args:
        loras: the files, all of whose tensors `check_loras` has found a place for.
        part: "unet" or "text_encoder", whichever the model is.
        model: on any device, in any floating-point dtype; the sum is made in float32.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    for name, change in lora_changes(loras, part, model).items():
        module = model.get_submodule(name.removesuffix(".weight"))
        module.weight = nn.Parameter(change(module.get_parameter("weight")), requires_grad=False)


def lora_changes(loras: Iterable[Lora], part: str, model: nn.Module) -> dict[str, Change]:
    """What `merge_loras` makes of the weights that it changes, by their names in the model.

    The functions take a weight of the model's, on any device, in any floating-point dtype.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    found: dict[str, list[tuple[float, _Layer]]] = {}
    for lora in loras:
        for name, layer in _LoraFile(lora.path).fit(part, model).items():
            found.setdefault(f"{name}.weight", []).append((lora.weight, layer))
    return {name: partial(_sum, layers=layers) for name, layers in found.items()}


@torch.no_grad()
def _sum(weight: Tensor, layers: Iterable[tuple[float, _Layer]]) -> Tensor:
    for share, layer in layers:
        weight = (weight.float() + share * layer.change(weight)).to(weight.dtype)
        layer.source.forget()  # the change may be kept, to be made again much later
    return weight


@dataclass(frozen=True)
class _Layer:
    """The names of a layer's tensors in its file, by their roles."""

    source: Checkpoint
    default_scale: Callable[[int], float]
    names: dict[str, str] = field(default_factory=dict)

    def shape(self, role: str) -> tuple[int, ...]:
        return tuple(self.source.outline[self.names[role]].shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the tensors change a weight of this shape."""
        up, down = self.shape("up"), self.shape("down")
        alpha = self.shape("alpha") if "alpha" in self.names else ()
        if min(len(up), len(down)) < 2 or down[0] == 0 or math.prod(alpha) != 1:
            return False
        # Without a middle factor, the outer ones meet directly.
        mid = self.shape("mid") if "mid" in self.names else (down[0], down[0])
        # A linear layer may be held as a 1x1 convolution, and the other way round.
        kernel = _without_ones(down[2:]) + _without_ones(mid[2:])
        return (
            mid[:2] == (up[1], down[0])
            and math.prod(up[2:]) == 1
            and (up[0], down[1]) == shape[:2]
            and kernel == _without_ones(shape[2:])
        )

    def change(self, weight: Tensor) -> Tensor:
        """What a LoRA of weight 1 adds: float32, of the weight's shape and on its device."""
        up, down = (self._tensor(role, weight.device) for role in ("up", "down"))
        rank = down.shape[0]
        if "mid" in self.names:
            # Convolutions 1x1, k x k and 1x1 one after another.
            mid = self._tensor("mid", weight.device)
            change = torch.einsum("oa,abk,bi->oik", up.flatten(1), mid.flatten(2), down.flatten(1))
        else:
            change = up.flatten(1) @ down.flatten(1)
        return change.reshape(weight.shape) * self._scale(rank)

    def _scale(self, rank: int) -> float:
        if "alpha" not in self.names:
            return self.default_scale(rank)
        return self.source.tensors[self.names["alpha"]].item() / rank

    def _tensor(self, role: str, device: torch.device) -> Tensor:
        return self.source.tensors[self.names[role]].to(device, torch.float32)


class _LoraFile:
    """A LoRA's tensors, sorted by the model and layer that they are for."""

    def __init__(self, path: Path) -> None:
        self.source = read_checkpoint(path)
        self.settings = _settings(self.source)
        self.layers: dict[str, dict[str, _Layer]] = {"unet": {}, "text_encoder": {}}
        unknown, twice = [], []
        for name in self.source.outline:
            suffix = next((suffix for suffix in ROLES if name.endswith(suffix)), None)
            if suffix is None:
                unknown.append(name)
                continue
            prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
            part, layer = PARTS[prefix], name.removeprefix(prefix).removesuffix(suffix)
            scale = self._default_scale(part, layer)
            entry = self.layers[part].setdefault(layer, _Layer(self.source, scale))
            if ROLES[suffix] in entry.names:
                twice.append(name)
            entry.names[ROLES[suffix]] = name
        if unknown:
            raise self._error("no layers of a LoRA for these models are", unknown)
        if twice:
            raise self._error("two names mean the same:", twice)

    def check(self, models: Mapping[str, nn.Module]) -> None:
        """Find a place for everything. Raises ``WeightsError``."""
        if not any(self.layers.values()):
            raise WeightsError(f"{self.source.path} holds no LoRA: it is empty")
        for part, model in models.items():
            self.fit(part, model)

    def fit(self, part: str, model: nn.Module) -> dict[str, _Layer]:
        """The model's layers that are changed, by their names. Raises ``WeightsError``."""
        ours = _layer_names(model)
        fitting: dict[str, _Layer] = {}
        homeless, incomplete, misshapen, twice = [], [], [], []
        for name, layer in self.layers[part].items():
            place = ours.get(name, ours.get(_renewed(name)))
            shown = next(iter(layer.names.values()))
            if place is None:
                homeless.append(shown)
            elif not {"up", "down"} <= layer.names.keys():
                incomplete.append(shown)
            elif not layer.fits(tuple(model.get_submodule(place).get_parameter("weight").shape)):
                misshapen.append(layer.names["down"])
            elif place in fitting:
                twice.append(shown)
            else:
                fitting[place] = layer
        owner = type(model).__name__
        if homeless:
            raise self._error(f"{owner} has no layers for", homeless)
        if incomplete:
            raise self._error("one of the two factors is missing beside", incomplete)
        if misshapen:
            raise self._error(f"{owner} has layers of other sizes than", misshapen)
        if twice:
            raise self._error("two names mean the same:", twice)
        return fitting

    def _default_scale(self, part: str, layer: str) -> Callable[[int], float]:
        """From a layer's rank to its scale, where no alpha is stored beside it."""
        alpha = self.settings.get(f"{part}.lora_alpha")
        patterns = self.settings.get(f"{part}.alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if f".{layer}".endswith(f".{pattern.removeprefix('^')}"):
                alpha = value
        if not isinstance(alpha, int | float):
            return lambda rank: 1.0
        if self.settings.get(f"{part}.use_rslora"):
            return lambda rank: alpha / math.sqrt(rank)
        return lambda rank: alpha / rank

    def _error(self, problem: str, names: list[str]) -> WeightsError:
        shown = ", ".join(printable(name) for name in names[:_SHOWN])
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        guess = self._guess()
        return WeightsError(
            f"{self.source.path} cannot be merged: {problem} {shown}{more}; "
            + (f"this looks like {guess}; " if guess else "")
            + "give a LoRA that was made for this model"
        )

    def _guess(self) -> str | None:
        for fragment, meaning in OTHER_KINDS.items():
            if any(fragment in name for name in self.source.outline):
                return meaning
        for name, tensor in self.source.outline.items():
            if re.search(r"attn2.*to_k.*(down|lora_A)", name) and tensor.ndim >= 2:
                return CONTEXT_WIDTHS.get(tensor.shape[1])
        if not any(name.endswith(suffix) for name in self.source.outline for suffix in ROLES):
            return "no LoRA at all"
        return None


def _layer_names(model: nn.Module) -> dict[str, str]:
    """The model's linear layers and convolutions by all the names that LoRAs have for them."""
    names: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for spelled in (name, name.removeprefix("text_model.")):
                names[spelled] = names[spelled.replace(".", "_")] = name
    return names


def _renewed(name: str) -> str:
    for old, new in OLD_LAYERS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _settings(source: Checkpoint) -> dict[str, object]:
    """What peft wrote of its configuration into a file of diffusers."""
    try:
        settings = json.loads(source.metadata.get(METADATA, "{}"))
    except ValueError as error:
        raise WeightsError(f"{source.path}: its entry {METADATA} is no JSON") from error
    return settings if isinstance(settings, dict) else {}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if math.prod(shape) == 1 else shape
