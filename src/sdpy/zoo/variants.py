"""The kinds of Stable Diffusion that sdpy knows: sizes, noise, defaults, and names of files.

A variant is data. Nothing else in the program knows one from another. The sizes of the model that
comes with sdpy stand beside its weights (`sdpy.zoo.bundle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdpy.components import COMPONENTS, components_with_role, model_components
from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    UNet2DConditionConfig,
)
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.bundle import BUNDLE, TURBO, read_bundle

VOCABULARY = "vocabulary"
"""Key of the vocabulary's file, beside the names of components, where users name files."""


@dataclass(frozen=True)
class FileNames:
    """Where a variant's files are looked for, in a folder; the first that exists is taken.

    Attributes:
        weights: by component; one that is missing here has the names of its row.
        vocabulary: CLIP's byte-pair merges.
    """

    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    vocabulary: tuple[str, ...] = ("bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz")

    def of(self, component: str) -> tuple[str, ...]:
        """The names of a component's weights."""
        return self.weights.get(component, COMPONENTS[component].data_files)

    @property
    def all(self) -> dict[str, tuple[str, ...]]:
        """The names of all files, by component and `VOCABULARY`."""
        names = {component.name: self.of(component.name) for component in model_components()}
        return {**names, VOCABULARY: self.vocabulary}


Config = Any
"""Sizes of a network: one of the configuration classes of `sdpy.models`."""


@dataclass(frozen=True)
class ModelVariant:
    """One kind of Stable Diffusion. The defaults are those of Stable Diffusion 1.5.

    Attributes:
        name: what ``--model`` calls it.
        summary: a line for people.
        configs: sizes of its components, by name.
        tiny_vae: sizes of the tiny autoencoder that may stand in for the real one.
        pad_ids: token that fills up a prompt, by text encoder; without an entry the end token.
        skip_layers: last layers of the text encoders that were left out in training.
        final_norm: whether the UNet is shown their states after the final layer norm.
        size_conditions: what the UNet is told beside the pooled embedding, in this order: fields of
            `sdpy.text.sizes.ImageSizes`.
        force_zeros_for_empty_prompt: whether an absent negative prompt is one of zeros; otherwise
            it is the empty text.
        scheduler, steps, timestep_spacing, guidance_scale: unless the user names others.
        follows_scheduler_file: whether a folder's scheduler file decides on sampler and spacing.
        sample_size: side of the images that it was trained on, in pixels.
        bucket_step: the model was trained on images of other proportions, too, which had as many
            pixels and sides that are multiples of this; None for a model trained on squares alone.
        max_pixels: a larger input image is scaled down to this many.
        base: variant that it was made from, where its own files are a UNet alone: the other
            components are the base's.
        bundled: folder of the files inside the package; None: they are in the user's data folder.
    """

    name: str
    summary: str
    configs: Mapping[str, Config] = field(
        default_factory=lambda: {
            "text_encoder": CLIPTextConfig(),
            "unet": UNet2DConditionConfig(),
            "vae": AutoencoderKLConfig(),
        },
        hash=False,
    )
    tiny_vae: AutoencoderTinyConfig = AutoencoderTinyConfig()
    noise: NoiseConfig = NoiseConfig()
    pad_ids: Mapping[str, int] = field(default_factory=dict, hash=False)
    skip_layers: int = 0
    final_norm: bool = True
    size_conditions: tuple[str, ...] = ()
    force_zeros_for_empty_prompt: bool = False
    scheduler: str = "ddim"
    steps: int = 30
    timestep_spacing: str = "original"
    guidance_scale: float = 7.5
    follows_scheduler_file: bool = False
    sample_size: int = 512
    bucket_step: int | None = None
    max_pixels: int = 1024 * 1024
    files: FileNames = field(default_factory=FileNames)
    base: str | None = None
    bundled: Path | None = None

    @property
    def text_encoders(self) -> dict[str, CLIPTextConfig]:
        """Sizes of its text encoders, by component, in the order of their embeddings."""
        rows = components_with_role("text_encoder")
        return {row.name: self.configs[row.name] for row in rows if row.name in self.configs}

    @property
    def text_encoder(self) -> CLIPTextConfig:
        """Sizes of the text encoder; of several, of the first. All have the same vocabulary."""
        return next(iter(self.text_encoders.values()))

    @property
    def pooled_dim(self) -> int | None:
        """Width of the pooled embedding that a text encoder makes; None where none makes one."""
        widths = (config.projection_dim for config in self.text_encoders.values())
        return next((width for width in widths if width is not None), None)

    @property
    def unet(self) -> UNet2DConditionConfig:
        """Sizes of the UNet."""
        config: UNet2DConditionConfig = self.configs["unet"]
        return config

    @property
    def vae(self) -> AutoencoderKLConfig:
        """Sizes of the autoencoder."""
        config: AutoencoderKLConfig = self.configs["vae"]
        return config

    def with_configs(self, **configs: Config) -> ModelVariant:
        """The same variant with other sizes of these components."""
        return replace(self, configs={**self.configs, **configs})


SD15 = ModelVariant(name="sd15", summary="Stable Diffusion 1.5 (and 1.1 to 1.4), 512x512")

SD15_INPAINT = replace(
    SD15,
    name="sd15-inpaint",
    summary="Stable Diffusion 1.5 for inpainting (a UNet with 9 input channels)",
    # An ordinary UNet can inpaint as well.
    files=FileNames(
        {"unet": ("unet-inpaint.ot", "unet-inpaint.safetensors", "unet.ot", "unet.safetensors")}
    ),
).with_configs(unet=replace(SD15.unet, in_channels=9))

SD21 = replace(
    SD15,
    name="sd21",
    summary="Stable Diffusion 2.1 (and 2.0), 768x768",
    noise=NoiseConfig(prediction_type="v_prediction"),
    pad_ids={"text_encoder": 0},
    sample_size=768,
    # As the Rust program calls them.
    files=FileNames(
        {
            "text_encoder": ("clip_v2.1.ot", "clip_v2.1.safetensors"),
            "unet": ("unet_v2.1.ot", "unet_v2.1.safetensors"),
            "vae": ("vae_v2.1.ot", "vae_v2.1.safetensors"),
        }
    ),
).with_configs(
    text_encoder=CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,  # of OpenCLIP's ViT-H/14, which has one more
        num_attention_heads=16,
        hidden_act="gelu",
    ),
    unet=replace(
        SD15.unet,
        attention_heads=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    ),
)

SD20 = replace(SD21, name="sd20", summary="Stable Diffusion 2.0, 768x768; as 2.1")

SD21_BASE = replace(
    SD21,
    name="sd21-base",
    summary="Stable Diffusion 2.1 base (and 2.0 base), 512x512",
    noise=NoiseConfig(prediction_type="epsilon"),
    sample_size=512,
)

SD2_INPAINT = replace(
    SD21_BASE,
    name="sd2-inpaint",
    summary="Stable Diffusion 2.0 for inpainting, 512x512",
).with_configs(unet=replace(SD21.unet, in_channels=9))

SD_TURBO = replace(
    SD21_BASE,
    name="sd-turbo",
    summary="SD-Turbo, 512x512 in 1 to 4 steps without guidance",
    steps=4,
    timestep_spacing="trailing",
    guidance_scale=1.0,
)

SDXL = ModelVariant(
    name="sdxl",
    summary="Stable Diffusion XL 1.0 (and 0.9), 1024x1024",
    configs={
        "text_encoder": CLIPTextConfig(),
        "text_encoder_2": CLIPTextConfig(  # OpenCLIP's ViT-bigG/14
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            projection_dim=1280,
        ),
        "unet": UNet2DConditionConfig(
            block_out_channels=(320, 640, 1280),
            cross_attention=(False, True, True),
            attention_heads=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=1280 + 6 * 256,
        ),
        "vae": AutoencoderKLConfig(scaling_factor=0.13025, force_upcast=True),
    },
    pad_ids={"text_encoder_2": 0},
    skip_layers=1,
    final_norm=False,
    size_conditions=("original_size", "crop", "target_size"),
    force_zeros_for_empty_prompt=True,
    scheduler="euler",
    timestep_spacing="leading",
    guidance_scale=5.0,
    follows_scheduler_file=True,
    sample_size=1024,
    bucket_step=64,
    files=FileNames(
        {
            "text_encoder": ("clip_xl.ot", "clip_xl.safetensors"),
            "text_encoder_2": ("clip_2_xl.ot", "clip_2_xl.safetensors"),
            "unet": ("unet_xl.ot", "unet_xl.safetensors"),
            "vae": ("vae_xl.ot", "vae_xl.safetensors"),
        }
    ),
)

SDXL_INPAINT = replace(
    SDXL,
    name="sdxl-inpaint",
    summary="Stable Diffusion XL for inpainting, 1024x1024",
    # An ordinary UNet can inpaint as well.
    files=FileNames(
        {
            **SDXL.files.weights,
            "unet": ("unet-inpaint_xl.ot", "unet-inpaint_xl.safetensors", *SDXL.files.of("unet")),
        }
    ),
).with_configs(unet=replace(SDXL.unet, in_channels=9))

SDXL_TURBO = replace(
    SDXL,
    name="sdxl-turbo",
    summary="SDXL-Turbo, 512x512 in 1 to 4 steps without guidance",
    scheduler="euler-a",
    steps=4,
    timestep_spacing="trailing",
    guidance_scale=1.0,
    sample_size=512,
    bucket_step=None,
)

SDXL_LIGHTNING = replace(
    SDXL,
    name="sdxl-lightning",
    summary="SDXL-Lightning, 1024x1024 in 2, 4 or 8 steps without guidance",
    steps=4,
    timestep_spacing="trailing",
    guidance_scale=1.0,
    follows_scheduler_file=False,  # which is the base's
    base="sdxl",
    files=FileNames(
        {
            **SDXL.files.weights,
            "unet": (
                *("unet-lightning_xl.ot", "unet-lightning_xl.safetensors"),
                # As its makers call them.
                *(f"sdxl_lightning_{steps}step_unet.safetensors" for steps in (4, 8, 2)),
            ),
        }
    ),
)

SDXL_LCM = replace(
    SDXL,
    name="sdxl-lcm",
    summary="SDXL's latent consistency model, 1024x1024 in 2 to 8 steps",
    scheduler="lcm",
    steps=4,
    guidance_scale=8.0,
    follows_scheduler_file=False,
    base="sdxl",
    files=FileNames(
        {
            **SDXL.files.weights,
            "unet": (
                *("unet-lcm_xl.ot", "unet-lcm_xl.safetensors"),
                "sdxl-lcm/diffusion_pytorch_model.safetensors",
            ),
        }
    ),
).with_configs(unet=replace(SDXL.unet, time_cond_proj_dim=256))

SSD_1B = replace(
    SDXL,
    name="ssd-1b",
    summary="SSD-1B, half as large as SDXL, 1024x1024",
    guidance_scale=9.0,
).with_configs(
    unet=replace(
        SDXL.unet,
        transformer_layers_per_block=(1, 2, 4),
        reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1),
        mid_block_type="UNetMidBlock2D",
    )
)

SEGMIND_VEGA = replace(
    SDXL,
    name="segmind-vega",
    summary="Segmind-Vega, a third as large as SDXL, 1024x1024",
    guidance_scale=9.0,
).with_configs(
    unet=replace(SDXL.unet, transformer_layers_per_block=(1, 1, 2), mid_block_type="UNetMidBlock2D")
)

SDXL_REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    summary="SDXL's refiner, for the last steps of an image or for a finished one",
    configs={
        "text_encoder_2": SDXL.configs["text_encoder_2"],
        "unet": replace(
            SDXL.unet,
            block_out_channels=(384, 768, 1536, 1536),
            cross_attention=(False, True, True, False),
            attention_heads=(6, 12, 24, 24),
            transformer_layers_per_block=4,
            cross_attention_dim=1280,
            projection_class_embeddings_input_dim=1280 + 5 * 256,
        ),
        "vae": SDXL.vae,
    },
    size_conditions=("original_size", "crop", "aesthetic_score"),
    force_zeros_for_empty_prompt=False,
    files=FileNames(
        {**SDXL.files.weights, "unet": ("unet-refiner_xl.ot", "unet-refiner_xl.safetensors")}
    ),
)


def bundled_variants(folder: Path) -> tuple[ModelVariant, ...]:
    """The demo model in a folder, and the same for few steps if its UNet is there, too."""
    bundle = read_bundle(folder)
    configs = {name: bundle.configs[name] for name in ("text_encoder", "unet", "vae")}
    files = FileNames(
        {"text_encoder": ("text_encoder.ot",), "unet": ("unet.ot",), "vae": ("vae.ot",)},
        vocabulary=("merges.txt",),
    )
    demo = ModelVariant(
        name="demo",
        summary=bundle.summary,
        configs=configs,
        tiny_vae=bundle.configs["tiny_vae"],
        noise=NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        timestep_spacing="trailing",
        guidance_scale=4.0,
        sample_size=bundle.sample_size,
        max_pixels=bundle.sample_size**2,
        files=files,
        bundled=folder,
    )
    if TURBO not in bundle.configs:
        return (demo,)
    turbo = replace(
        demo,
        name="demo-turbo",
        summary=f"{demo.summary}, in 1 to 4 steps",
        scheduler="lcm",
        steps=4,
        files=replace(files, weights={**files.weights, "unet": (f"{TURBO}.ot",)}),
    )
    return demo, turbo.with_configs(unet=bundle.configs[TURBO])


BUNDLED = bundled_variants(BUNDLE)
DEMO = BUNDLED[0]

VARIANTS: dict[str, ModelVariant] = {
    variant.name: variant
    for variant in (
        *(SD15, SD15_INPAINT, SD20, SD21, SD21_BASE, SD2_INPAINT, SD_TURBO),
        *(SDXL, SDXL_INPAINT, SDXL_TURBO, SDXL_LIGHTNING, SDXL_LCM, SDXL_REFINER),
        *(SSD_1B, SEGMIND_VEGA),
        *BUNDLED,
    )
}

_BK_SDM = replace(SD15.unet, layers_per_block=1)
_THREE_LEVELS = replace(
    _BK_SDM,
    block_out_channels=(320, 640, 1280),
    cross_attention=(True, True, True),
    attention_heads=(8, 8, 8),
    mid_block_type=None,
)
ONE_STEP_UNETS: tuple[UNet2DConditionConfig, ...] = (
    # SDXS made of a fine-tuned 1.5, and SDXS 0.9, made of 2.1
    replace(_THREE_LEVELS, cross_attention=(False, True, True), attention_heads=(5, 10, 20)),
    replace(
        _THREE_LEVELS,
        attention_heads=(5, 10, 20),
        only_cross_attention=(True, False, False),
        cross_attention_dim=1024,
        use_linear_projection=True,
    ),
)
"""UNets that do all in a single step, without guidance."""

SMALL_UNETS: tuple[UNet2DConditionConfig, ...] = (
    _BK_SDM,  # BK-SDM base
    replace(_BK_SDM, mid_block_type=None),  # BK-SDM small
    _THREE_LEVELS,  # BK-SDM tiny, tiny-sd
    *ONE_STEP_UNETS,
)
"""UNets that were distilled from Stable Diffusion 1.x and 2.x, and else are used as these."""
