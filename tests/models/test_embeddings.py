"""The sinusoids beside numpy's in float64."""

import numpy as np
import pytest
import torch

from sdpy.models.embeddings import timestep_embedding


def by_hand(timestep: float, dim: int) -> np.ndarray:
    angles = [timestep * 10000.0 ** (-i / (dim / 2)) for i in range(dim // 2)]
    return np.concatenate([np.cos(angles), np.sin(angles)])


@pytest.mark.parametrize("timestep", [0, 1, 33, 37.25, 500, 999, 1000])
@pytest.mark.parametrize("dim", [2, 48, 320])
def test_formula(timestep: float, dim: int) -> None:
    embedding = timestep_embedding(torch.tensor([timestep]), dim)
    assert embedding.dtype == torch.float32
    # A frequency is right to 2^-23 or so, an angle to a thousand times that.
    assert np.abs(embedding[0].numpy() - by_hand(timestep, dim)).max() < 2e-4


def test_every_timestep_of_a_batch_has_its_own_row() -> None:
    timesteps = torch.tensor([5, 900, 5])
    embedding = timestep_embedding(timesteps, 16)
    assert embedding.shape == (3, 16)
    for row, timestep in zip(embedding, timesteps, strict=True):
        assert torch.equal(row, timestep_embedding(timestep[None], 16)[0])
    assert not torch.equal(embedding[0], embedding[1])


def test_half_precision_timesteps_are_counted_in_single_precision() -> None:
    exact = timestep_embedding(torch.tensor([768.0]), 32)
    assert torch.equal(timestep_embedding(torch.tensor([768.0], dtype=torch.float16), 32), exact)
