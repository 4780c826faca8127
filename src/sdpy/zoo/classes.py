"""The classes that components may be of: how their sizes are read and written, how they are made.

Keyed by the classes' names in diffusers and transformers, as the rows of `sdpy.components` give
them. Several components may be of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sdpy.components import COMPONENTS, label_of
from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ControlNetConfig,
    ControlNetModel,
    ControlNetUnionConfig,
    ControlNetUnionModel,
    T2IAdapter,
    T2IAdapterConfig,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.models.meta import init_empty_weights
from sdpy.zoo.adapter_configs import adapter_beside, t2i_adapter_config, told_adapter
from sdpy.zoo.config_files import (
    controlnet_json,
    controlnet_union_json,
    t2i_adapter_json,
    text_encoder_json,
    tiny_vae_json,
    unet_json,
    vae_json,
)
from sdpy.zoo.configs import (
    Json,
    Outline,
    controlnet_beside,
    controlnet_config,
    is_tiny_vae,
    text_config,
    tiny_vae_config,
    told_controlnet,
    unet_config,
    unet_inputs,
    vae_config,
)
from sdpy.zoo.union_configs import controlnet_union_config, is_union, union_beside
from sdpy.zoo.variants import Config, ModelVariant


@dataclass(frozen=True)
class ModelClass:
    """A class of networks.

    Attributes:
        config: class of its sizes.
        model: makes a network of these sizes.
        read: the sizes that weights of this outline have, given what their ``config.json`` says
            (empty if there is none). Raises ``WeightsError`` where they have no such names.
        write: what ``config.json`` says of these sizes in a folder of that variant.
        fit: the sizes with which weights of this outline are loaded for a variant; they are the
            variant's own but for what files of one variant differ in. Raises ``WeightsError`` for
            weights that go with no such variant.
        settle: what the weights' ``config.json`` changes in the sizes that ``fit`` gives.
        matches: whether weights are of this class, of those that their component may be of.
    """

    config: type
    model: Callable[[Any], nn.Module]
    read: Callable[[Outline, Json], Config]
    write: Callable[[Any, ModelVariant], dict[str, Any]]
    fit: Callable[[Config, ModelVariant, Outline], Config] = lambda own, variant, outline: own
    settle: Callable[[Any, Json], Config] = lambda config, told: config
    matches: Callable[[Outline], bool] = lambda outline: True


MODEL_CLASSES: dict[str, ModelClass] = {
    "CLIPTextModel": ModelClass(
        config=CLIPTextConfig,
        model=CLIPTextModel,
        read=text_config,
        write=lambda config, variant: text_encoder_json(
            config, variant.pad_ids.get("text_encoder")
        ),
    ),
    "CLIPTextModelWithProjection": ModelClass(
        config=CLIPTextConfig,
        model=CLIPTextModelWithProjection,
        read=text_config,
        write=lambda config, variant: text_encoder_json(
            config, variant.pad_ids.get("text_encoder_2")
        ),
    ),
    "UNet2DConditionModel": ModelClass(
        config=UNet2DConditionConfig,
        model=UNet2DConditionModel,
        read=unet_config,
        write=lambda config, variant: unet_json(
            config, variant.sample_size // variant.vae.downsample_factor
        ),
        fit=lambda own, variant, outline: replace(own, **unet_inputs(outline)),
    ),
    "AutoencoderKL": ModelClass(
        config=AutoencoderKLConfig,
        model=AutoencoderKL,
        read=vae_config,
        write=lambda config, variant: vae_json(config, variant.sample_size),
        matches=lambda outline: not is_tiny_vae(outline),
    ),
    "AutoencoderTiny": ModelClass(
        config=AutoencoderTinyConfig,
        model=AutoencoderTiny,
        read=tiny_vae_config,
        write=lambda config, variant: tiny_vae_json(config),
        fit=lambda own, variant, outline: variant.tiny_vae,
        matches=is_tiny_vae,
    ),
    "ControlNetModel": ModelClass(
        config=ControlNetConfig,
        model=ControlNetModel,
        read=controlnet_config,
        write=lambda config, variant: controlnet_json(config),
        fit=lambda own, variant, outline: controlnet_beside(variant, outline),
        settle=told_controlnet,
        matches=lambda outline: not is_union(outline),
    ),
    "ControlNetUnionModel": ModelClass(
        config=ControlNetUnionConfig,
        model=ControlNetUnionModel,
        read=controlnet_union_config,
        write=lambda config, variant: controlnet_union_json(config),
        fit=lambda own, variant, outline: union_beside(variant, outline),
        settle=told_controlnet,
        matches=is_union,
    ),
    "T2IAdapter": ModelClass(
        config=T2IAdapterConfig,
        model=T2IAdapter,
        read=t2i_adapter_config,
        write=lambda config, variant: t2i_adapter_json(config),
        fit=lambda own, variant, outline: adapter_beside(variant, outline),
        settle=told_adapter,
    ),
}


def class_of(component: str, outline: Outline) -> ModelClass:
    """The class of which a component's weights are; where none matches, its usual one."""
    classes = [MODEL_CLASSES[name] for name in COMPONENTS[component].classes]
    return next((one for one in classes if one.matches(outline)), classes[0])


def read_config(component: str, outline: Outline, config: Json) -> Config:
    """The sizes of a component's weights, given what their ``config.json`` says.

    Raises:
        WeightsError: the weights have no such names and shapes as a network of this class.
    """
    return class_of(component, outline).read(outline, config)


def fit_config(
    component: str, outline: Outline, variant: ModelVariant, told: Json | None = None
) -> Config:
    """The sizes with which a component's weights are loaded for a variant.

    Args:
        component: its name.
        outline: its weights' shapes.
        variant: of the model that it is a part of or goes with.
        told: what the ``config.json`` beside a companion's weights says.

    Raises:
        WeightsError: the variant does not know the component, and its weights do not tell, or they
            do not go with it.
    """
    found = class_of(component, outline)
    own = variant.configs.get(component)
    if own is None and not COMPONENTS[component].is_companion:
        own = found.read(outline, {})
    return found.settle(found.fit(own, variant, outline), {} if told is None else told)


def class_name(component: str, config: Config) -> str:
    """What diffusers or transformers call the class of a component of these sizes."""
    names = COMPONENTS[component].classes
    return next(name for name in names if type(config) is MODEL_CLASSES[name].config)


def config_json(component: str, config: Config, variant: ModelVariant) -> dict[str, Any]:
    """``config.json`` of a component of these sizes, in a folder of that variant."""
    return MODEL_CLASSES[class_name(component, config)].write(config, variant)


def make_model(component: str, config: Config) -> nn.Module:
    """A network of these sizes without weights, on the meta device.

    Raises:
        WeightsError: no network can have these sizes.
    """
    try:
        with init_empty_weights():
            return MODEL_CLASSES[class_name(component, config)].model(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise WeightsError(f"no {label_of(component)} has such sizes: {error}") from error


def class_names(configs: Mapping[str, Config]) -> dict[str, tuple[str, str]]:
    """Package and class of each component of these sizes, as ``model_index.json`` names them."""
    return {
        name: (COMPONENTS[name].package, class_name(name, config))
        for name, config in configs.items()
    }
