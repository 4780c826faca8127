"""Which demo models can be trained: their sizes, and how training divides its time.

A recipe is data. The stages of `scripts.demo.train` read everything from it, and nothing in them
asks which recipe they train. The file ``model.json`` beside the bundled weights names theirs.
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
    "vocabulary": 0.01,
    "render": 0.03,
    "autoencoder": 0.29,
    "latents": 0.03,
    "denoiser": 0.44,
    "decoder": 0.06,
    "consistency": 0.12,
    "export": 0.02,
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
        reader_renders, reader_epochs: scenes that its reader of images is trained on
            (`scripts.demo.classifier`), and how often it sees each.
    """

    name: str
    variant: ModelVariant
    scenes: SceneSet = SCENES
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES, hash=False)
    reader_renders: int = 16_000
    reader_epochs: int = 4

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


def _variant(
    summary: str,
    sample_size: int,
    *,
    text_encoder: CLIPTextConfig,
    unet: UNet2DConditionConfig,
    vae: AutoencoderKLConfig,
    tiny_vae: AutoencoderTinyConfig,
) -> ModelVariant:
    """What all demo models have in common, with these sizes."""
    return replace(
        DEMO,
        summary=f"the small model that comes with sdpy: {summary}, {sample_size}x{sample_size}",
        configs={"text_encoder": text_encoder, "unet": unet, "vae": vae},
        tiny_vae=tiny_vae,
        sample_size=sample_size,
        max_pixels=sample_size**2,
    )


DEMO_128 = _variant(
    "ten subjects",
    128,
    text_encoder=CLIPTextConfig(
        vocab_size=770,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    unet=UNet2DConditionConfig(
        block_out_channels=(48, 96, 128),
        cross_attention=(False, True, True),
        attention_heads=(2, 3, 4),
        layers_per_block=1,
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    vae=AutoencoderKLConfig(
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    ),
    tiny_vae=AutoencoderTinyConfig(channels=32, encoder_blocks=(1, 1, 2), decoder_blocks=(2, 2, 1)),
)

DEMO_256 = _variant(
    "twenty subjects in three styles",
    256,
    text_encoder=CLIPTextConfig(
        vocab_size=850,
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=5,
    ),
    unet=UNet2DConditionConfig(
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 96, 128),
        cross_attention=(False, True, True),
        attention_heads=(2, 3, 4),
        layers_per_block=1,
        cross_attention_dim=160,
        norm_num_groups=16,
    ),
    vae=AutoencoderKLConfig(
        latent_channels=12,
        block_out_channels=(24, 48, 72, 96),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    ),
    tiny_vae=AutoencoderTinyConfig(
        channels=32, latent_channels=12, encoder_blocks=(1, 1, 1, 2), decoder_blocks=(2, 2, 2, 1)
    ),
)

DEMO_96 = replace(DEMO_256, sample_size=96, max_pixels=96**2)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("demo", DEMO_128),
        # Twenty subjects at three sizes and two colours are more to tell apart.
        Recipe("demo-256", DEMO_256, WORLD, reader_renders=40_000, reader_epochs=6),
        # The same networks on images so small that a CPU trains them in an hour or two, badly.
        Recipe("demo-96", DEMO_96, WORLD),
    )
}
"""By name."""
