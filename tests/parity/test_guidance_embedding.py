"""UNets that take the guidance scale as an embedding, beside diffusers'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from parity.test_models import SD1_UNET, SD2_UNET
from sdpy.models import UNet2DConditionModel
from sdpy.models.embeddings import guidance_scale_embedding
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import reference_unet


@pytest.mark.parametrize("dim", [4, 7, 256, 512])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5, 8.3, 14.9])
def test_embedding(scale: float, dim: int) -> None:
    reference = StableDiffusionPipeline.get_guidance_scale_embedding
    expected = reference(None, torch.tensor(scale - 1).repeat(1), embedding_dim=dim)
    assert relative_error(guidance_scale_embedding(scale, dim), expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("config", [SD1_UNET, SD2_UNET], ids=["sd1", "sd2"])
@torch.no_grad()
def test_unet(config) -> None:
    config = replace(config, time_cond_proj_dim=10)
    ours, theirs = randomise(UNet2DConditionModel(config)), reference_unet(config)
    theirs.load_state_dict(ours.state_dict())
    sample, context = normal(1, 4, 8, 8, seed=1), normal(1, 7, config.cross_attention_dim, seed=2)
    timestep = torch.tensor(759)
    results = []
    for scale in (1.0, 8.5):
        condition = guidance_scale_embedding(scale, 10)
        result = ours(sample, timestep, context, timestep_cond=condition)
        expected = theirs(sample, timestep, context, timestep_cond=condition).sample
        assert relative_error(result, expected) <= MODEL_TOLERANCE
        results.append(result)
    assert relative_error(*results) > 1e-3
