"""What the headers of a model's files say: sizes, names and shapes, without reading numbers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    Lora,
    check_loras,
    check_weights,
    lora_files,
    outline_of,
    read_checkpoint,
)
from sdpy.components import COMPANIONS
from sdpy.errors import WeightsError
from sdpy.runtime.loading import TAKES_LORAS, lora_states
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.hints import doubtful_adapter
from sdpy.zoo.schemas import told_beside
from sdpy.zoo.source import ModelSource

KEPT_OF_PROMPT = (".attn2.to_k.weight", ".attn2.to_v.weight")
"""Weights of layers whose results stay over all steps."""


@dataclass(frozen=True)
class FileSize:
    """How large the weights of a component are.

    Attributes:
        numbers: how many the weights are.
        unmapped: bytes of the file that cannot be mapped.
        token_width: numbers that are kept of each token of a prompt: the keys and values of all
            layers that attend to it.
    """

    numbers: int
    unmapped: int
    token_width: int


class Headers:
    """What a session knows of its files, read once for each state of a file.

    Components are named as in `ModelSource`.

    Args:
        source: variant and files.

    Attributes:
        notices: what the user should know of the files, and has not been told yet.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.notices = [*source.assumptions, *source.notices]
        self._configs: dict[Hashable, Any] = {}
        self._sizes: dict[Hashable, FileSize] = {}
        self._checked: set[Hashable] = set()
        # Models without weights that were checked against files, until they are loaded.
        self._empty: dict[Hashable, nn.Module] = {}
        self._lora_files: tuple[Checkpoint, ...] = ()

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer.

        Raises:
            WeightsError: the vocabulary cannot be read.
        """
        return self.source.read_tokenizer()

    def config(self, component: str, path: Path | None = None) -> Any:
        """The sizes of a component; see `ModelSource.config`.

        Raises:
            WeightsError: the file cannot be read.
        """
        known = (component, self.source.fingerprint(component, path))
        if known not in self._configs:
            self._configs[known] = self.source.config(component, path)
        return self._configs[known]

    def file_size(self, component: str, path: Path | None = None) -> FileSize:
        """How large the weights of a component are.

        Raises:
            WeightsError: the file cannot be read.
        """
        known = (component, self.source.fingerprint(component, path))
        if known not in self._sizes:
            checkpoint = self.source.checkpoint(component, path)
            outline = outline_of(checkpoint, component)
            tensors = outline.values()
            self._sizes[known] = FileSize(
                numbers=sum(tensor.numel() for tensor in tensors),
                unmapped=0 if checkpoint.is_mapped else sum(tensor.nbytes for tensor in tensors),
                token_width=sum(
                    len(tensor) for name, tensor in outline.items() if name.endswith(KEPT_OF_PROMPT)
                ),
            )
        return self._sizes[known]

    def check(self, loras: tuple[Lora, ...] = ()) -> None:
        """Read the vocabulary and the names and shapes of the model's own weights, no numbers.

        What has been checked is not checked again until a file changes.

        Raises:
            WeightsError: a file is broken or of the wrong kind.
        """
        _ = self.tokenizer
        names = tuple(self.source.files.weights)
        states = tuple(self.source.fingerprint(name) for name in names)
        checked = (states, lora_states(loras))
        if checked in self._checked:
            return
        # As long as they are held here, whoever asks for these files gets the same open ones.
        self._lora_files = tuple(
            read_checkpoint(file) for lora in loras for file in lora_files(lora.path)
        )
        models = {}
        for name in names:
            models[name] = self.source.make(name)
            check_weights(models[name], self.source.checkpoint(name), component=name)
            self._empty[name, self.source.fingerprint(name)] = models[name]
        self._check_latents()
        self._check_widths()
        check_loras(loras, {name: models[name] for name in names if name in TAKES_LORAS})
        self._checked.add(checked)

    def check_companion(self, path: Path) -> None:
        """Read the names and shapes of a ControlNet's or T2I-Adapter's weights, but only once.

        Raises:
            WeightsError: the file is broken, of the wrong kind, or for another model.
        """
        checked = self.source.fingerprint(COMPANIONS[0], path)
        if checked not in self._checked:
            component = self.source.companion(path)
            made = self.source.make(component, path)
            opened = self.source.checkpoint(component, path)
            check_weights(made, opened, component=component)
            self.notices += told_beside(component, opened.path).notices
            if component == "t2i_adapter":
                self.notices += doubtful_adapter(opened, self.source.variant)
            self._checked.add(checked)

    def take_empty(self, component: str, path: Path) -> nn.Module:
        """A model without weights: that which they were checked against, unless it is taken."""
        made = self._empty.pop((component, self.source.fingerprint(component, path)), None)
        return self.source.make(component, path) if made is None else made

    def _check_widths(self) -> None:
        """The UNet looks at what the text encoders give, side by side."""
        encoders = {
            name: config.hidden_size for name, config in self.source.variant.text_encoders.items()
        }
        wanted = self.config("unet").cross_attention_dim
        if sum(encoders.values()) != wanted:
            files = self.source.files.weights
            given = " and ".join(
                f"{files[name]} ({width} wide)" for name, width in encoders.items()
            )
            raise WeightsError(
                f"{files['unet']} takes embeddings {wanted} wide, but {given} gives others: use "
                "the text encoders of the same model"
            )

    def _check_latents(self) -> None:
        ours, theirs = self.source.variant.vae, self.config("vae")
        if (ours.downsample_factor, ours.latent_channels) != (
            theirs.downsample_factor,
            theirs.latent_channels,
        ):
            raise WeightsError(
                f"{self.source.files.weights['vae']} is a tiny autoencoder for other latents than "
                f"those of {self.source.variant.name}; leave --vae-weights out"
            )
