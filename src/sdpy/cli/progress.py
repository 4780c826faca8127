"""Showing what a pipeline reports, on stderr."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from sdpy.cli.display import ProgressDisplay

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.pipelines.events import ImageReady, PipelineEvent, StepReady


def follow(
    events: Iterator[PipelineEvent], display: ProgressDisplay, seeds: str | None, verbose: bool
) -> Generator[ImageReady | StepReady, None, None]:
    """Show the events of a pipeline; yield its images.

    Args:
        events: of the pipeline.
        display: that shows them.
        seeds: what is said of the seeds, once everything has been checked; None for
            nothing.
        verbose: whether details are shown.
    """
    from sdpy.pipelines.events import Detail, Notice, Progress, PromptTokenized

    bar = None
    for k, event in enumerate(events):
        if k == 0 and seeds is not None:
            display.line(seeds)
        if isinstance(event, Notice):
            display.line(event.text)
        elif isinstance(event, Detail):
            if verbose:
                display.line(event.text)
        elif isinstance(event, PromptTokenized):
            display.line(f"{event.what}: {event.prompt}")
        elif isinstance(event, Progress):
            if bar is None or event.step == 0:
                bar = display.bar(event.steps, _label(event.first, event.last, event.images))
            bar.update(event.step)
        else:
            yield event


def _label(first: int, last: int, images: int) -> str:
    one = f"image {first}" if first == last else f"images {first} to {last}"
    return f"{one} of {images}"
