"""Files of what images look like while they are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdpy.cli.options import OutputOptions
from sdpy.errors import UsageError

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.images.metadata import GeneratedImage
    from sdpy.pipelines.events import ImageReady, StepReady


class StepWriter:
    """Writes what images look like after their steps, beside the images.

    Args:
        options: say whether, and in which form.
        replaces: whether files may be replaced.
    """

    def __init__(self, options: OutputOptions, *, replaces: bool) -> None:
        self.options, self.replaces = options, replaces
        self.frames: dict[int, list[GeneratedImage]] = {}

    def check(self, paths: Sequence[Path]) -> None:
        """Find out whether files are in the way.

        Raises:
            UsageError: one is, which must not be replaced.
        """
        if self.replaces or interval_of(self.options) is None:
            return
        for path in paths:
            there = [_animation(path), *_steps(path)] if path.parent.is_dir() else []
            for one in there:
                if one.exists():
                    raise UsageError(f"{one} exists and is not replaced: choose another name")

    def write(self, ready: StepReady, path: Path) -> None:
        """Write, or keep for the animation, what an image looks like after a step."""
        if self.options.step_animation:
            self.frames.setdefault(ready.sample, []).append(ready.image)
        if self.options.step_images:
            from sdpy.images.files import save_image

            path.parent.mkdir(parents=True, exist_ok=True)
            number = f"{ready.step:0{max(2, len(str(ready.steps)))}d}"
            target = path.with_name(f"{path.stem}.step-{number}{path.suffix}")
            save_image(ready.image, target, overwrite=self.replaces)
            self._print(target)

    def finish(self, ready: ImageReady, path: Path) -> None:
        """Write the animation that ends in an image."""
        if self.options.step_animation:
            from sdpy.images.sheets import save_animation

            path.parent.mkdir(parents=True, exist_ok=True)
            frames = [*self.frames.pop(ready.sample, []), ready.image]
            save_animation(frames, _animation(path), overwrite=self.replaces)
            self._print(_animation(path))

    def _print(self, path: Path) -> None:
        if not (self.options.quiet or self.options.json):
            print(path, flush=True)


def interval_of(options: OutputOptions) -> int | None:
    """After how many steps it is written what an image looks like; None for never."""
    return options.step_interval if options.step_images or options.step_animation else None


def _animation(path: Path) -> Path:
    return path.with_name(f"{path.stem}.steps.webp")


def _steps(path: Path) -> list[Path]:
    """The files of steps that there are."""
    beginning = f"{path.stem}.step-"
    return [one for one in path.parent.iterdir() if one.name.startswith(beginning)]
