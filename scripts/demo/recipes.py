"""Which demo models can be trained: their sizes, and how training divides its time.

A recipe is data. The stages of `scripts.demo.train` read everything from it, and nothing in them
asks which recipe they train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scripts.demo.scene_sets import SCENES, WORLD, SceneSet
from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    UNet2DConditionConfig,
)
from sdpy.zoo.variants import DEMO, ModelVariant

SHARES: Mapping[str, float] = {
    "render": 0.13,
    "vocabulary": 0.01,
    "captions": 0.02,
    "autoencoder": 0.25,
    "latents": 0.02,
    "denoiser": 0.40,
    "decoder": 0.06,
    "consistency": 0.10,
    "export": 0.01,
}
"""The share of the time that each stage gets where ``--minutes`` limits it."""


@dataclass(frozen=True)
class Recipe:
    """A demo model to train.

    Attributes:
        name: what ``--recipe`` calls it.
        variant: sizes of its networks, its noise and the side of its images.
        scenes: what it learns from.
        shares: of the time, by stage; a stage without one is not timed.
    """

    name: str
    variant: ModelVariant
    scenes: SceneSet = SCENES
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES, hash=False)

    @property
    def size(self) -> int:
        """Pixels a side of the images."""
        return self.variant.sample_size

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image."""
        vae = self.variant.vae
        side = self.size // vae.downsample_factor
        return vae.latent_channels, side, side


DEMO_256 = replace(
    DEMO,
    summary="the small model that comes with sdpy, 256x256",
    configs={
        "text_encoder": CLIPTextConfig(
            vocab_size=850,
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=3,
            num_attention_heads=5,
        ),
        "unet": UNet2DConditionConfig(
            in_channels=12,
            out_channels=12,
            block_out_channels=(64, 96, 128),
            cross_attention=(False, True, True),
            attention_heads=(2, 3, 4),
            layers_per_block=1,
            cross_attention_dim=160,
            norm_num_groups=16,
        ),
        "vae": AutoencoderKLConfig(
            latent_channels=12,
            block_out_channels=(24, 48, 72, 96),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
        ),
    },
    tiny_vae=AutoencoderTinyConfig(
        channels=32, latent_channels=12, encoder_blocks=(1, 1, 1, 2), decoder_blocks=(2, 2, 2, 1)
    ),
    sample_size=256,
    max_pixels=256 * 256,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (Recipe("demo", DEMO), Recipe("demo-256", DEMO_256, WORLD))
}
"""By name. The first is that of the bundled weights."""
