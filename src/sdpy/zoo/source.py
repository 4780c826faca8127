"""A model on disk, ready to be loaded: its variant, its files, and those of them that are open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    FileState,
    find_parts,
    fingerprint,
    outline_of,
    read_checkpoint,
    without_plain,
)
from sdpy.components import COMPANIONS, COMPONENTS
from sdpy.errors import WeightsError
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.text.vocabulary import read_vocabulary
from sdpy.zoo.classes import fit_config, make_model
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.schemas import told_beside
from sdpy.zoo.variants import Config, ModelVariant


@dataclass(frozen=True)
class ModelSource:
    """A model on disk.

    Components are named by their keys in `sdpy.components.COMPONENTS`. One that is no part of a
    model, such as a ControlNet, needs the ``path`` of its file; for the others it is the model's.

    Attributes:
        variant: its sizes, noise and defaults.
        files: where its components are.
        assumptions: what could not be told and was assumed, a line each for the user.
        notices: what the user should know of its configuration files, likewise.
        ema: whether averaged weights of the UNet are taken where a file has both.
        checkpoints: the files that were opened, which stay open as long as this object, so that
            nobody reads their headers again.
    """

    variant: ModelVariant
    files: ModelFiles
    assumptions: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    ema: bool = False
    checkpoints: dict[Path, Checkpoint] = field(
        default_factory=dict, compare=False, repr=False, hash=False
    )

    def path(self, name: str, path: Path | None = None) -> Path:
        """The file of a component."""
        return self.files.weights[name] if path is None else path

    def checkpoint(self, name: str, path: Path | None = None) -> Checkpoint:
        """The open file of a component. It is opened again only if it has changed on disk.

        Raises:
            WeightsError: the file cannot be read.
        """
        path = self.path(name, path)
        checkpoint = self.checkpoints[path] = read_checkpoint(path)
        return without_plain(checkpoint) if self.ema else checkpoint

    def companion(self, path: Path) -> str:
        """The component of a file that is given beside the model; see `COMPANIONS`.

        Raises:
            WeightsError: the file cannot be read.
        """
        held = find_parts(self.checkpoint(COMPANIONS[0], path).outline).by_component
        return next((name for name in COMPANIONS if name in held), COMPANIONS[0])

    def fingerprint(self, name: str, path: Path | None = None) -> tuple[FileState, ...]:
        """What identifies the weights of a component; see `sdpy.checkpoints.fingerprint`.

        Raises:
            WeightsError: a file is missing.
        """
        return fingerprint(self.path(name, path))

    def config(self, name: str, path: Path | None = None) -> Config:
        """The sizes of a component: the variant's, but for what its file decides.

        That is the number of a UNet's input channels, 9 for inpainting, and the width of its
        guidance embedding; that an autoencoder is a tiny one; a ControlNet's embedding or the kind
        of a T2I-Adapter, and what the ``config.json`` beside it says.

        Raises:
            WeightsError: the file cannot be read, or does not go with the model.
        """
        checkpoint = self.checkpoint(name, path)
        outline = outline_of(checkpoint, name)
        # Those of a model's own components are in the variant.
        is_companion = COMPONENTS[name].is_companion
        told = told_beside(name, checkpoint.path).values if is_companion else {}
        try:
            return fit_config(name, outline, self.variant, told)
        except WeightsError as error:
            raise WeightsError(f"{checkpoint.path}: {error}") from error

    def read_tokenizer(self) -> CLIPTokenizer:
        """The tokenizer. Another vocabulary than the model's own has as many tokens as that.

        Raises:
            WeightsError: a vocabulary cannot be read, or belongs to another model.
        """
        files, rows = self.files, self.variant.text_encoder.vocab_size
        own = files.own_vocabulary
        size = None if own is None else read_vocabulary(own, rows).size
        return CLIPTokenizer.from_file(files.vocabulary, rows, size)

    def make(self, name: str, path: Path | None = None) -> nn.Module:
        """The network of a component without weights, on the meta device.

        Raises:
            WeightsError: the file cannot be read.
        """
        return make_model(name, self.config(name, path))
