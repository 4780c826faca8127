"""Attention in slices of any size gives what it gives at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.optimizations.exact.sliced_attention import AUTOMATIC, slice_attention
from support.compare import normal, relative_error
from support.tiny import TINY, tiny_model

TOLERANCE = 1e-6
# Batch times heads is 2 and 3, or 4 and 6, in the UNet; 1 or 2 in the autoencoder.
SIZES = [AUTOMATIC, 1, 2, 3, 4, 5, 7, 1_000_000, 2**62]


def unet_output(model: nn.Module, batch: int) -> Tensor:
    timesteps = torch.tensor(981)
    return model(normal(batch, 4, 12, 10), timesteps, normal(batch, 77, 32, seed=1))


def vae_output(model: nn.Module, batch: int) -> Tensor:
    posterior = model.encode(normal(batch, 3, 24, 20))
    return torch.cat([posterior.mean.flatten(), model.decode(normal(batch, 4, 12, 10)).flatten()])


OUTPUTS = {"unet": unet_output, "vae": vae_output}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OUTPUTS)
@torch.inference_mode()
def test_slices_of_any_size(name: str, size: int, batch: int) -> None:
    whole = OUTPUTS[name](tiny_model(name), batch)
    model = tiny_model(name)
    slice_attention(model, size)
    assert relative_error(OUTPUTS[name](model, batch), whole) <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (5, [5, 1]), (6, [6]), (99, [6]), (0, [1] * 6)],
)
def test_no_more_heads_at_once_than_asked(
    monkeypatch: pytest.MonkeyPatch, size: int, expected: list[int]
) -> None:
    """A batch of two with three heads each; automatic takes half of the heads, rounded down."""
    attention = Attention(12, heads=3)
    slice_attention(nn.Sequential(attention), size)
    seen: list[int] = []
    attend = nn.functional.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(len(query))
        return attend(query, key, value)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noting)
    attention(normal(2, 5, 12))
    assert seen == expected


def test_every_attention_is_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = nn.functional.scaled_dot_product_attention
    seen: list[int] = []

    def noting(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(len(query))
        return attend(query, key, value)

    models = {name: tiny_model(name) for name in OUTPUTS}
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noting)
    for name, model in models.items():
        slice_attention(model, 1)
        with torch.inference_mode():
            OUTPUTS[name](model, 1)
    heads = TINY.unet.attention_heads
    # Level 1 attends once going down and twice going up, each to itself and to the prompt, with
    # its own heads; the middle with the last level's. The autoencoder's two have one head each.
    assert seen == [1] * (2 * (heads[0] + heads[1] + 2 * heads[0]) + 2)
