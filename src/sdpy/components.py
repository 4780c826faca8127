"""The components that a Stable Diffusion is made of: one table, a row a component.

Nothing else in the program spells out the list. A row says how a component is called by people,
folders, files and options, and which classes of diffusers or transformers it may be of; what a
class is, how its sizes are read and written and how it is made, is in `sdpy.zoo.classes`. A further
text encoder is one more row. Nothing here imports torch, so that ``sdpy --help`` can read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """One network of a pipeline.

    Attributes:
        name: its folder in a diffusers folder, and its key in all mappings by component.
        label: what people call it.
        role: what it does. Components of one role have the same names in weights files: a second
            text encoder has the role of the first.
        classes: that its weights may be of, by the names of diffusers or transformers; the first
            is the usual one.
        package: which of these two has them.
        is_required: whether every model has one. Of the others, a model has those that its variant
            gives sizes of.
        is_companion: whether it is given as a file of its own beside a model, as a ControlNet is,
            instead of being a part of the model.
        cpu_word: what ``--cpu`` calls it; None where it cannot be placed by itself.
        placed_with: the component on whose device it always is; None for a place of its own.
        option: names its file on the command line; None where no option does.
        option_help: what the option's help says.
        data_stem: name, without suffix, of its file in a data folder.
        folder_stems: names, without suffix, of its .safetensors and of its pickled weights in its
            folder of a diffusers folder.
        prefixes: of its names in a file that holds all components, as the original programs' do.
            The first is written, but for text encoders: see `sdpy.checkpoints.dialects`.
        own_names: names in its weights files that other components of its role have no use for.
        tokenizer: folder of its tokenizer in a diffusers folder; None for what reads no text.
        telltales: beginnings of names, as diffusers and transformers have them, in a file that
            holds one component only. In all rows, the longest that fits decides; of two that are
            equally long, the first in alphabetical order.
        original_telltales: likewise, of the original programs' names without a prefix.
        adapter_prefixes: of the names of its layers in LoRAs and other adapters; kohya's, which end
            in "_", have "_" for "." in the rest, too.
    """

    name: str
    label: str
    role: str
    classes: tuple[str, ...]
    package: str = "diffusers"
    is_required: bool = False
    is_companion: bool = False
    cpu_word: str | None = None
    placed_with: str | None = None
    option: str | None = None
    option_help: str = ""
    data_stem: str = ""
    folder_stems: tuple[str, str] = ("diffusion_pytorch_model", "diffusion_pytorch_model")
    prefixes: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    tokenizer: str | None = None
    telltales: tuple[str, ...] = ()
    original_telltales: tuple[str, ...] = ()
    adapter_prefixes: tuple[str, ...] = ()

    @property
    def data_files(self) -> tuple[str, ...]:
        """Its names in a data folder; the first that exists is taken."""
        stem = self.data_stem or self.name
        return f"{stem}.ot", f"{stem}.safetensors"


COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component(
            name="text_encoder",
            label="text encoder",
            role="text_encoder",
            classes=("CLIPTextModel",),
            package="transformers",
            cpu_word="clip",
            option="--clip-weights",
            option_help="Text encoder: .ot, .safetensors, .bin, .ckpt, .npz.",
            data_stem="pytorch_model",
            folder_stems=("model", "pytorch_model"),
            prefixes=(
                *("cond_stage_model.transformer.", "cond_stage_model.model."),
                "conditioner.embedders.0.transformer.",
                *("text_encoders.clip_l.transformer.", "clip_l.transformer."),
            ),
            tokenizer="tokenizer",
            telltales=("text_model.", "embeddings.token_embedding.", "encoder.layers."),
            original_telltales=("transformer.resblocks.",),
            adapter_prefixes=(
                *("text_encoder.base_model.model.", "text_encoder."),
                *("lora_te_", "lora_te1_"),
                *("clip_l.transformer.", "text_encoders.clip_l.transformer."),
            ),
        ),
        Component(
            name="text_encoder_2",
            label="second text encoder",
            role="text_encoder",
            classes=("CLIPTextModelWithProjection",),
            package="transformers",
            cpu_word="clip",
            option="--clip-2-weights",
            option_help="Second text encoder, of Stable Diffusion XL, likewise.",
            folder_stems=("model", "pytorch_model"),
            prefixes=(
                *("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
                *("text_encoders.clip_g.transformer.", "clip_g.transformer."),
            ),
            own_names=("text_projection.weight",),
            tokenizer="tokenizer_2",
            telltales=("text_model.", "embeddings.token_embedding.", "encoder.layers."),
            original_telltales=("transformer.resblocks.",),
            adapter_prefixes=(
                *("text_encoder_2.base_model.model.", "text_encoder_2."),
                "lora_te2_",
                *("clip_g.transformer.", "text_encoders.clip_g.transformer."),
            ),
        ),
        Component(
            name="unet",
            label="UNet",
            role="unet",
            classes=("UNet2DConditionModel",),
            is_required=True,
            cpu_word="unet",
            option="--unet-weights",
            option_help="UNet, likewise.",
            prefixes=("model.diffusion_model.", "diffusion_model."),
            telltales=("time_embedding.", "up_blocks.", "down_blocks."),
            original_telltales=("input_blocks.",),
            adapter_prefixes=(
                *("unet.base_model.model.", "unet."),
                *("lora_unet_", "lycoris_"),
                *("diffusion_model.", "model.diffusion_model."),
            ),
        ),
        Component(
            name="vae",
            label="VAE",
            role="vae",
            classes=("AutoencoderKL", "AutoencoderTiny"),
            is_required=True,
            cpu_word="vae",
            option="--vae-weights",
            option_help="Autoencoder, likewise; TAESD's too, whose two files are named with a comma"
            " between, or one of them if they lie in one folder.",
            prefixes=("first_stage_model.",),
            # A tiny autoencoder's encoder has the names of a text encoder without its prefix.
            telltales=(
                *("decoder.layers.", "encoder.", "decoder."),
                *("taesd_encoder.", "taesd_decoder."),
            ),
            original_telltales=("encoder.down.", "decoder.up."),
        ),
        Component(
            name="controlnet",
            label="ControlNet",
            role="controlnet",
            classes=("ControlNetModel", "ControlNetUnionModel"),
            is_companion=True,
            placed_with="unet",
            prefixes=("control_model.",),
            # Its other names are those of a UNet.
            telltales=(
                "controlnet_cond_embedding.",
                "controlnet_down_blocks.",
                "controlnet_mid_block.",
            ),
            original_telltales=("input_hint_block.",),
        ),
        Component(
            name="t2i_adapter",
            label="T2I-Adapter",
            role="t2i_adapter",
            classes=("T2IAdapter",),
            is_companion=True,
            placed_with="unet",
            telltales=("adapter.body.0.resnets.",),
            original_telltales=(
                *("body.0.block1.", "adapter.body.0.block1."),
                *("body.0.body.0.block1.", "adapter.body.0.body.0.block1."),
            ),
        ),
    )
}
"""By their names, in the order in which they are listed for people."""

_OTHER_PIPELINES = (*("text_encoder_3", "transformer", "prior", "decoder", "movq"),)


COMPANIONS = tuple(name for name, one in COMPONENTS.items() if one.is_companion)
"""What is given as a file of its own, to steer an image: the usual one first."""


def model_components() -> tuple[Component, ...]:
    """The components that are a part of a model."""
    return tuple(one for one in COMPONENTS.values() if not one.is_companion)


def required_components() -> tuple[Component, ...]:
    """The components that every model has."""
    return tuple(one for one in COMPONENTS.values() if one.is_required)


def components_with_role(*roles: str) -> tuple[Component, ...]:
    """The components with one of these roles, such as all text encoders."""
    return tuple(one for one in COMPONENTS.values() if one.role in roles)


def unknown_components() -> tuple[str, ...]:
    """Components of other pipelines, by which one can tell that a folder holds none of ours."""
    return tuple(name for name in _OTHER_PIPELINES if name not in COMPONENTS)


def cpu_words() -> tuple[str, ...]:
    """What ``--cpu`` understands: the components that are to run on the CPU."""
    words = (one.cpu_word for one in COMPONENTS.values())
    return "all", *dict.fromkeys(word for word in words if word is not None)


def label_of(name: str | None, unknown: str = "something else") -> str:
    """What people call the component of that name; ``unknown`` where there is none."""
    return COMPONENTS[name].label if name in COMPONENTS else unknown
