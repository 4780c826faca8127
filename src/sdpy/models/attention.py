"""Attention and the transformer that the UNet interleaves with its ResNets.

Shapes: B batch, T tokens of the sequence that asks, S tokens of the one that is asked, D channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.rows import add_rows, repeat_rows


class ScaledDotProductAttention(nn.Module):
    """Attention of heads that are split already; it has no weights.

    Source: "Attention Is All You Need" (Vaswani et al., 2017), equation 1.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (B, heads, T, d), ``key`` and ``value`` (B, heads, S, d) -> query's shape."""
        return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, or to a context.

    Args:
        dim: channels D of the sequence that asks, and of the result.
        context_dim: channels of the context; None for self-attention.
        heads: number of heads; each is ``dim // heads`` wide.

    Raises:
        ValueError: ``dim`` is no multiple of ``heads``.

    Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.2.
    """

    def __init__(self, dim: int, context_dim: int | None = None, *, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} attention heads")
        context_dim = dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.attend: nn.Module = ScaledDotProductAttention()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x`` (B, T, D), ``context`` (B, S, context_dim), None for ``x`` itself -> (B, T, D)."""
        context = x if context is None else context
        return self.look_up(x, self.to_k(context), self.to_v(context))

    def look_up(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same where keys and values (B, S, D) of the context are there."""
        parts = (self._split_heads(part) for part in (self.to_q(x), keys, values))
        x = self.attend(*parts)  # (B, heads, T, d)
        return self.to_out[0](x.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        return x.view(B, T, self.heads, D // self.heads).transpose(1, 2)  # (B, heads, T, d)


class GEGLU(nn.Module):
    """Linear layer gated by the exact GELU of a second one (Shazeer, 2020, "GLU Variants")."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, inner_dim)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Position-wise network of a transformer block, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Index 1 is the dropout of the reference implementation, which has no weights.
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each normed first and added.

    Args:
        dim: channels of the tokens.
        context_dim: channels of the prompt embeddings.
        heads: attention heads.
        only_cross_attention: attend to the prompt in the place of self-attention, too.
    """

    def __init__(
        self, dim: int, context_dim: int, *, heads: int, only_cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn1 = Attention(dim, context_dim if only_cross_attention else None, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.attn2 = Attention(dim, context_dim, heads=heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-5)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x`` (B or k B, T, dim), ``context`` (k B, S, context_dim) -> (k B, T, dim)."""
        if self.only_cross_attention:
            x = repeat_rows(x, len(context))
            x = x + self.attn1(self.norm1(x), context)
        else:
            x = x + self.attn1(self.norm1(x))
            x = repeat_rows(x, len(context))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """The spatial transformer: every position of a feature map is a token.

    Args:
        channels: of the feature map.
        context_dim: channels of the prompt embeddings.
        heads: attention heads.
        layers: transformer blocks in sequence.
        norm_num_groups: groups of the GroupNorm.
        linear_projection: project in and out by a linear layer (Stable Diffusion 2.x) instead of
            a 1x1 convolution (1.x); the arithmetic is the same, the shape of the weights is not.
        only_cross_attention: see `BasicTransformerBlock`.

    Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022),
    appendix E.2.1.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        *,
        heads: int,
        layers: int,
        norm_num_groups: int,
        linear_projection: bool,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = _projection(channels, linear=linear_projection)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                channels, context_dim, heads=heads, only_cross_attention=only_cross_attention
            )
            for _ in range(layers)
        )
        self.proj_out = _projection(channels, linear=linear_projection)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x`` (B or k B, C, H, W), ``context`` (k B, S, context_dim) -> (k B, C, H, W)."""
        tokens = self.enter(x)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.leave(tokens, x)

    def enter(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H * W, C), the tokens that the first block is given."""
        x = self.norm(x)
        if self.linear_projection:
            return self.proj_in(_to_tokens(x))
        return _to_tokens(self.proj_in(x))

    def leave(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """(k B, H * W, C) of the last block, added to what came in -> (k B, C, H, W)."""
        size = residual.shape[-2:]
        if self.linear_projection:
            x = _to_feature_map(self.proj_out(tokens), *size)
        else:
            x = self.proj_out(_to_feature_map(tokens, *size))
        return add_rows(x, residual)


def _projection(channels: int, *, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H * W, C)


def _to_feature_map(x: Tensor, height: int, width: int) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), -1, height, width)  # (B, H * W, C) -> (B, C, H, W)
