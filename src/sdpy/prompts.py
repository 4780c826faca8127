"""From a prompt's text to the embeddings that the UNet attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpy.models import CLIPTextModel
from sdpy.tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the text encoder made of a prompt and of what it is guided away from.

    Attributes:
        prompt: (1, T, D) float32.
        negative: (1, T, D) float32, of the negative prompt, which may be empty.
        dropped: the end of the prompt that did not fit, "" when everything did.
        negative_dropped: the same of the negative prompt.
    """

    prompt: Tensor
    negative: Tensor
    dropped: str
    negative_dropped: str


def encode_prompt(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompt: str,
    negative_prompt: str = "",
    *,
    pad_id: int | None = None,
) -> PromptEmbeddings:
    """Encode a prompt and its negative in one batch.

    Args:
        tokenizer: of the text encoder's vocabulary.
        text_encoder: on any device.
        prompt: what to paint.
        negative_prompt: what to steer away from.
        pad_id: fills up short prompts; None for the end token.
    """
    length = text_encoder.config.max_position_embeddings
    tokenized = [
        tokenizer.tokenize(text, max_length=length, pad_id=pad_id)
        for text in (prompt, negative_prompt)
    ]
    device = text_encoder.text_model.final_layer_norm.weight.device
    input_ids = torch.tensor([one.ids for one in tokenized], device=device)
    with torch.inference_mode():
        embeddings = text_encoder(input_ids).float()
    return PromptEmbeddings(
        prompt=embeddings[:1],
        negative=embeddings[1:],
        dropped=tokenized[0].dropped,
        negative_dropped=tokenized[1].dropped,
    )
