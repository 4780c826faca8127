"""CLIP's text encoder, which turns a prompt's tokens into the UNet's context.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.,
2021); names of parameters as in transformers' ``CLIPTextModel``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.base import ModelMixin


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of a text encoder. The defaults are ViT-L/14's, used by Stable Diffusion 1.x.

    ``hidden_act`` is ``quick_gelu`` (OpenAI's CLIP) or ``gelu`` (OpenCLIP, Stable Diffusion 2.x).
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CLIPTextEmbeddings(nn.Module):
    """Sum of a token's and its position's embedding."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, added_embeddings: Tensor | None = None) -> Tensor:
        """(B, T) int64, and (N, D) for the N ids that follow the vocabulary -> (B, T, D)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self._tokens(input_ids, added_embeddings) + self.position_embedding(positions)

    def _tokens(self, input_ids: Tensor, added: Tensor | None) -> Tensor:
        if added is None:
            return self.token_embedding(input_ids)
        vocab_size = self.token_embedding.num_embeddings
        is_added = input_ids >= vocab_size
        own = self.token_embedding(input_ids.masked_fill(is_added, 0))
        new = added.to(own)[(input_ids - vocab_size).clamp(min=0)]
        return torch.where(is_added[..., None], new, own)


class CLIPAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        if dim % config.num_attention_heads:
            raise ValueError(
                f"{dim} channels do not divide into {config.num_attention_heads} attention heads"
            )
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); token t sees tokens 0 to t."""
        B, T, D = x.shape
        query, key, value = (
            projection(x).view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)  # each (B, heads, T, d)
        )
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class CLIPMLP(nn.Module):
    """Position-wise network of a layer."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normed first and added."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.mlp = CLIPMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor, skip_layers: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D), without the last ``skip_layers`` layers."""
        for layer in self.layers[: len(self.layers) - skip_layers]:
            x = layer(x)
        return x


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-5)

    def forward(
        self, input_ids: Tensor, skip_layers: int = 0, added_embeddings: Tensor | None = None
    ) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        x = self.embeddings(input_ids, added_embeddings)
        return self.final_layer_norm(self.encoder(x, skip_layers))


class CLIPTextModel(ModelMixin):
    """Text encoder: the last hidden state after the final layer norm is the prompt's embedding.

    Raises:
        ValueError: ``hidden_size`` is no multiple of the number of heads.
        KeyError: ``hidden_act`` is unknown.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def forward(
        self, input_ids: Tensor, *, skip_layers: int = 0, added_embeddings: Tensor | None = None
    ) -> Tensor:
        """Embed token ids.

        Args:
            input_ids: (B, T) int64, T at most ``max_position_embeddings``.
            skip_layers: how many of the last layers are left out; the final norm is not. This is
                diffusers' ``clip_skip``.
            added_embeddings: (N, D) of N tokens beyond the vocabulary, whose ids begin at
                ``vocab_size`` ("An Image is Worth One Word", Gal et al., 2022).

        Returns:
            (B, T, D).

        Raises:
            ValueError: ``skip_layers`` leaves no layer.
        """
        layers = self.config.num_hidden_layers
        if not 0 <= skip_layers < layers:
            raise ValueError(f"cannot skip {skip_layers} of {layers} layers")
        return self.text_model(input_ids, skip_layers, added_embeddings)

    @property
    def _resident_weight(self) -> Tensor:
        return self.text_model.final_layer_norm.weight  # the first layer is the whole vocabulary
