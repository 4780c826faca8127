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
    ``projection_dim`` is the width of the pooled embedding, only of `CLIPTextModelWithProjection`.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    projection_dim: int | None = None


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

    def forward(self, x: Tensor, skip_layers: int = 0, first: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D), from layer ``first`` on, without the last ``skip_layers``."""
        for layer in self.layers[first : len(self.layers) - skip_layers]:
            x = layer(x)
        return x


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = config.num_hidden_layers
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-5)

    def forward(
        self,
        input_ids: Tensor,
        *,
        skip_layers: int = 0,
        final_norm: bool = True,
        added_embeddings: Tensor | None = None,
    ) -> Tensor:
        """(B, T) int64 -> (B, T, D); see `CLIPTextModel.forward`."""
        self._check_layers(skip_layers)
        x = self.encoder(self.embeddings(input_ids, added_embeddings), skip_layers)
        return self.final_layer_norm(x) if final_norm else x

    def with_last(
        self,
        input_ids: Tensor,
        *,
        skip_layers: int,
        final_norm: bool,
        added_embeddings: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the same after all layers with the final norm."""
        self._check_layers(skip_layers)
        x = self.encoder(self.embeddings(input_ids, added_embeddings), skip_layers)
        last = self.final_layer_norm(self.encoder(x, first=self.layers - skip_layers))
        return self.final_layer_norm(x) if final_norm else x, last

    def _check_layers(self, skip_layers: int) -> None:
        if not 0 <= skip_layers < self.layers:
            raise ValueError(f"cannot skip {skip_layers} of {self.layers} layers")


class CLIPTextBase(ModelMixin):
    """What the text encoders have in common.

    Raises:
        ValueError: ``hidden_size`` is no multiple of the number of heads.
        KeyError: ``hidden_act`` is unknown.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    @property
    def _resident_weight(self) -> Tensor:
        return self.text_model.final_layer_norm.weight  # the first layer is the whole vocabulary


class CLIPTextModel(CLIPTextBase):
    """Text encoder: the last hidden state after the final layer norm is the prompt's embedding."""

    def forward(
        self,
        input_ids: Tensor,
        *,
        skip_layers: int = 0,
        final_norm: bool = True,
        added_embeddings: Tensor | None = None,
    ) -> Tensor:
        """Embed token ids.

        Args:
            input_ids: (B, T) int64, T at most ``max_position_embeddings``.
            skip_layers: how many of the last layers are left out. This is diffusers' ``clip_skip``.
            final_norm: whether the final layer norm is applied. Stable Diffusion XL looks at the
                state before the last layer as it is.
            added_embeddings: (N, D) of N tokens beyond the vocabulary, whose ids begin at
                ``vocab_size`` ("An Image is Worth One Word", Gal et al., 2022).

        Returns:
            (B, T, D).

        Raises:
            ValueError: ``skip_layers`` leaves no layer.
        """
        return self.text_model(
            input_ids,
            skip_layers=skip_layers,
            final_norm=final_norm,
            added_embeddings=added_embeddings,
        )


class CLIPTextModelWithProjection(CLIPTextBase):
    """Text encoder that also sums a prompt up in one vector, its pooled embedding.

    Names of parameters as in transformers' class of this name.

    Raises:
        ValueError: ``projection_dim`` is missing, or as above.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        if config.projection_dim is None:
            raise ValueError("a text encoder with projection needs projection_dim")
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        *,
        skip_layers: int = 0,
        final_norm: bool = True,
        added_embeddings: Tensor | None = None,
        end_id: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed token ids; the other arguments are those of `CLIPTextModel.forward`.

        Args:
            end_id: the end token; None for the vocabulary's last, as it is where no rows follow.

        Returns:
            (B, T, D), and (B, projection_dim): the pooled embedding, which is the projection of
            what all layers and the final norm make of the first end token.

        Raises:
            ValueError: ``skip_layers`` leaves no layer.
        """
        states, last = self.text_model.with_last(
            input_ids,
            skip_layers=skip_layers,
            final_norm=final_norm,
            added_embeddings=added_embeddings,
        )
        end_id = self.config.vocab_size - 1 if end_id is None else end_id
        end = (input_ids == end_id).int().argmax(dim=1)  # the first of them
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return states, self.text_projection(last[rows, end])
