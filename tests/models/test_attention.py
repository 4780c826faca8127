"""Attention beside the formula written out in float64, with explicit loops over the heads."""

import math

import pytest
import torch
from torch import Tensor

from sdpy.models.attention import GEGLU, Attention, Transformer2DModel
from sdpy.models.clip import CLIPAttention, CLIPTextConfig, quick_gelu


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """Equation 1 of "Attention Is All You Need", head by head; q (B, T, D), k and v (B, S, D)."""
    result = torch.zeros_like(q)
    width = q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)  # (B, T, S)
        if causal:
            for token in range(scores.shape[1]):
                scores[:, token, token + 1 :] = -math.inf
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        result[..., part] = weights @ v[..., part]
    return result


@pytest.mark.parametrize("heads", [1, 2, 6])
@torch.no_grad()
def test_cross_attention(heads: int) -> None:
    layer = Attention(12, 5, heads=heads).double()
    x, context = normal(2, 7, 12), normal(2, 3, 5, seed=1)
    expected = attention_by_hand(
        layer.to_q(x), layer.to_k(context), layer.to_v(context), heads, causal=False
    )
    assert torch.allclose(layer(x, context), layer.to_out[0](expected), atol=1e-12)


@torch.no_grad()
def test_self_attention_is_cross_attention_to_itself() -> None:
    layer = Attention(12, heads=3).double()
    x = normal(2, 7, 12)
    assert torch.equal(layer(x), layer(x, x))


@torch.no_grad()
def test_causal_attention() -> None:
    config = CLIPTextConfig(hidden_size=12, num_attention_heads=3)
    layer = CLIPAttention(config).double()
    x = normal(2, 7, 12)
    expected = attention_by_hand(layer.q_proj(x), layer.k_proj(x), layer.v_proj(x), 3, causal=True)
    assert torch.allclose(layer(x), layer.out_proj(expected), atol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
@torch.no_grad()
def test_the_two_projections_of_a_transformer_are_one_arithmetic(linear: bool) -> None:
    def make(linear: bool) -> Transformer2DModel:
        return Transformer2DModel(
            8, 5, heads=2, layers=1, norm_num_groups=4, linear_projection=linear
        ).double()

    ours, other = make(linear), make(not linear)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    other.load_state_dict({n: t.reshape(shapes[n]) for n, t in ours.state_dict().items()})
    x, context = normal(2, 8, 3, 4), normal(2, 6, 5, seed=1)
    assert torch.allclose(ours(x, context), other(x, context), atol=1e-12)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="10 channels do not divide into 3 attention heads"):
        Attention(10, heads=3)
    with pytest.raises(ValueError, match="10 channels do not divide into 3 attention heads"):
        CLIPAttention(CLIPTextConfig(hidden_size=10, num_attention_heads=3))


def test_gates() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    by_hand = [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]
    assert torch.allclose(quick_gelu(x), torch.tensor(by_hand, dtype=torch.float64), atol=1e-15)

    layer = GEGLU(1, 1).double()
    with torch.no_grad():
        layer.proj.weight.fill_(1.0)
        layer.proj.bias.zero_()
        exact = [v * v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.tolist()]
        expected = torch.tensor(exact, dtype=torch.float64)
        assert torch.allclose(layer(x[:, None])[:, 0], expected, atol=1e-14)
