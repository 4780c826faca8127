"""A demo model to train whose every part is there and hardly has a size."""

from __future__ import annotations

from dataclasses import replace

from scripts.demo.recipes import Recipe
from scripts.demo.scene_sets import WORLD
from sdpy.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig
from sdpy.zoo.variants import DEMO

TINY_RECIPE = Recipe(
    "tiny",
    replace(
        DEMO,
        configs={
            "text_encoder": CLIPTextConfig(
                vocab_size=600,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            ),
            "unet": UNet2DConditionConfig(
                in_channels=6,
                out_channels=6,
                block_out_channels=(16, 16),
                cross_attention=(False, True),
                attention_heads=(2, 2),
                layers_per_block=1,
                cross_attention_dim=16,
                norm_num_groups=8,
            ),
            "vae": AutoencoderKLConfig(
                latent_channels=6,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                scaling_factor=1.0,
            ),
        },
        sample_size=64,
        max_pixels=64 * 64,
    ),
    WORLD,
)
"""Networks that learn nothing, with other scenes, latents and sizes than the bundled model's."""
