"""``sdpy batch JOBS...``."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpy.cli.batch_plan import print_plan
from sdpy.cli.batch_progress import Progress, counted, open_progress
from sdpy.errors import JobsError, UsageError
from sdpy.jobs.options import JobGenerationOptions, OptionGroups, TaskOptions
from sdpy.options import option
from sdpy.pipelines.control_options import ControlOptions
from sdpy.pipelines.request import MaskOptions
from sdpy.runtime.options import ModelOptions

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.jobs.engines.base import Engine
    from sdpy.jobs.events import Ended
    from sdpy.jobs.expand import Expansion
    from sdpy.jobs.prepare import Batch
    from sdpy.jobs.runner import Stop

_READING = "Reading jobs"
_DOING = "Doing the batch"
_SEVERAL = "More than one machine"
_TELLING = "Output"

_STOPPING = "stopping after the images in hand; again to stop at once"

ENGINES = ("local", "ray")

GRACE_AFTER_SIGTERM = 25.0
"""Seconds; batch schedulers kill a process 30 seconds after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How jobs are read, and how the batch is done."""

    grid: list[str] | None = option(
        None,
        "--grid",
        help="Multiply all jobs by values of an option, seed=1,2,3 or seed=1-8, or by words in "
        "the place of one in the prompt, 'prompt: night|noon'. Repeat for more.",
        panel=_READING,
        metavar="NAME=VALUES",
        shown_default="none",
        cli_type=list[str],
    )
    input: Path | None = option(
        None,
        "--input",
        help="Folder of images: each job is done with each of them, as image-to-image. "
        "photo.mask.png is the mask of photo.jpg.",
        panel=_READING,
        shown_default="none",
    )
    masks: Path | None = option(
        None,
        "--masks",
        help="Folder of masks for --input, named as the images are.",
        panel=_READING,
        shown_default="none",
    )
    wildcards: Path | None = option(
        None,
        "--wildcards",
        help="Replace {a|b} and __name__ in prompts, with name.txt of this folder "
        "(pip install 'sdpy\\[wildcards]').",
        panel=_READING,
        shown_default="braces are text",
    )
    wildcard_mode: str = option(
        "random",
        "--wildcard-mode",
        help="random: one choice for each image, by its seed. all: every combination.",
        panel=_READING,
        metavar="random|all",
    )
    format: str | None = option(
        None,
        "--format",
        help="Of the job files: jsonl, csv, toml, yaml or text.",
        panel=_READING,
        shown_default="what their names say",
    )
    dialect: str | None = option(
        None,
        "--dialect",
        help="Of options in lines of text: plain (none), sdpy, a1111, kohya or invokeai.",
        panel=_READING,
        shown_default="guessed line by line",
    )
    dry_run: bool = option(
        False,
        "--dry-run",
        help="Check all jobs, list the images to be made, estimate time and memory; load nothing.",
        panel=_DOING,
    )
    ordered: bool = option(
        False,
        "--ordered",
        help="Keep the order of the jobs, even if models are loaded again and again.",
        panel=_DOING,
    )
    overwrite: bool = option(
        False, "--overwrite", help="Replace files that other jobs have made.", panel=_DOING
    )
    fail_fast: bool = option(
        False, "--fail-fast", help="Stop at the first job that fails.", panel=_DOING
    )
    retry_failed: bool = option(
        False,
        "--retry-failed",
        help="Try jobs again that failed in an earlier run (failed.jsonl beside the images).",
        panel=_DOING,
    )
    grace_period: float | None = option(
        None,
        "--grace-period",
        help="Seconds for the images in hand after Ctrl-C or SIGTERM; then they are given up.",
        panel=_DOING,
        shown_default=f"{GRACE_AFTER_SIGTERM:g} after SIGTERM, no limit after Ctrl-C",
        minimum=0.0,
    )
    shard: str | None = option(
        None,
        "--shard",
        help="Do the I-th of N shares. auto: as the variables of SLURM, PBS or Grid Engine say "
        "in an array job.",
        panel=_SEVERAL,
        metavar="I/N|auto",
        shown_default="all",
    )
    devices: str | None = option(
        None,
        "--devices",
        help="Devices of this machine, with a process each: cuda:0,cuda:1.",
        panel=_SEVERAL,
        metavar="DEVICE,...",
        shown_default="one",
    )
    engine: str = option(
        "local",
        "--engine",
        help="local: this machine. ray: workers of a Ray cluster (pip install 'sdpy\\[ray]').",
        panel=_SEVERAL,
        metavar="local|ray",
    )
    address: str | None = option(
        None,
        "--address",
        help="Ray cluster to join, such as auto or ray://head:10001.",
        panel=_SEVERAL,
        shown_default="a new one on this machine",
    )
    workers: int | None = option(
        None,
        "--workers",
        help="Workers of --engine ray.",
        panel=_SEVERAL,
        shown_default="one a GPU, or one a node without",
        minimum=1,
    )
    no_metadata: bool = option(
        False,
        "--no-metadata",
        help="Write files that do not say how their images were made.",
        panel=_TELLING,
    )
    progress: str = option(
        "auto",
        "--progress",
        help="auto: a bar on a terminal, lines elsewhere. json: events for programs.",
        panel=_TELLING,
        metavar="auto|bar|lines|json|none",
    )
    progress_fd: int | None = option(
        None,
        "--progress-fd",
        help="File descriptor that --progress json writes to.",
        panel=_TELLING,
        shown_default="standard error",
        minimum=1,
    )
    json: bool = option(
        False, "--json", help="Print the list of --dry-run as JSON.", panel=_TELLING
    )
    quiet: bool = option(
        False, "--quiet", "-q", help="Print nothing but failures and errors.", panel=_TELLING
    )


def batch(
    task: TaskOptions,
    options: JobGenerationOptions,
    mask: MaskOptions,
    control: ControlOptions,
    model: ModelOptions,
    how: BatchOptions,
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOBS]...",
            help="Files of jobs: .jsonl, .csv, .toml, .yaml, or text with a prompt a line; - is "
            "standard input.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the images of many jobs, with one load of the models.

    A job may have every option of generate, img2img and inpaint under its name there; the options
    given here are what jobs do not say themselves. Lists of values multiply out. What is there
    already is skipped, so that the same command goes on where it was stopped.

    Exit codes: 0 all images are there, 9 some jobs failed (failed.jsonl says which and why),
    130 stopped by Ctrl-C, 143 by SIGTERM, 5 an image could not be written; others as for the
    single commands.
    """
    began = datetime.now()
    defaults = OptionGroups(task, options, mask, control, model)
    if how.json and not how.dry_run:
        raise UsageError("--json is for --dry-run; --progress json tells what happens")
    _check_engine(defaults, how)
    progress = open_progress(how.progress, how.progress_fd, quiet=how.quiet)
    with _signals(how.grace_period) as stop:
        prepared = _prepare(defaults, how, jobs or [], began)
        try:
            if how.dry_run:
                failed = print_plan(prepared, as_json=how.json)
                if failed:
                    raise JobsError(f"{counted(failed, 'job')} cannot work: correct what is wrong")
                return
            ended = _run(prepared, how, progress, stop)
        finally:
            prepared.checker.sessions.close()
    _finish(ended, prepared, how, progress)


def _prepare(defaults: OptionGroups, how: BatchOptions, jobs: list[str], began: datetime) -> Batch:
    from sdpy.jobs.check import Checker
    from sdpy.jobs.prepare import BatchSettings, prepare
    from sdpy.jobs.shards import Shard, read_shard
    from sdpy.jobs.targets import Targets

    expansion = _expansion(defaults, how)
    devices = _devices(how)
    settings = BatchSettings(
        overwrite=how.overwrite,
        ordered=how.ordered,
        fail_fast=how.fail_fast,
        retry_failed=how.retry_failed,
        metadata=not how.no_metadata,
        shard=Shard() if how.shard is None else read_shard(how.shard),
    )
    return prepare(
        expansion.jobs(_entries(defaults, how, jobs)),
        Checker(defaults, device=None if devices is None else devices[0], thorough=how.dry_run),
        Targets(defaults, began),
        settings,
        wildcards=expansion.wildcards,
        writes=not how.dry_run,
    )


def _expansion(defaults: OptionGroups, how: BatchOptions) -> Expansion:
    from sdpy.jobs.expand import Expansion, read_axis
    from sdpy.jobs.folders import input_images
    from sdpy.jobs.wildcards import Wildcards

    if how.masks is not None and how.input is None:
        raise UsageError("--masks is for the images of --input: name their folder, too")
    wildcards = None
    if how.wildcards is not None:
        wildcards = Wildcards(how.wildcards, how.wildcard_mode)
        wildcards.check()
    axes = tuple(read_axis(text) for text in how.grid or ())
    images = () if how.input is None else input_images(how.input, how.masks)
    return Expansion(defaults, axes, images, wildcards)


def _entries(defaults: OptionGroups, how: BatchOptions, jobs: list[str]) -> Iterator[Any]:
    from sdpy.jobs.dialects import DIALECTS
    from sdpy.jobs.job import Entry, Place
    from sdpy.jobs.readers import FORMATS, read_jobs

    for name, value, known in (
        ("--format", how.format, FORMATS),
        ("--dialect", how.dialect, DIALECTS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"unknown {name} '{value}': use one of {', '.join(known)}")
    if not jobs:
        if defaults.task.prompt is None:
            raise UsageError("no jobs: name a file of jobs, - for standard input, or a --prompt")
        yield Entry(Place("command line", 1), {})
    for path in jobs:
        yield from read_jobs(path, format=how.format, dialect=how.dialect)


def _run(prepared: Batch, how: BatchOptions, progress: Progress, stop: Stop) -> Ended:
    from sdpy.jobs.events import Ended, ImageDone
    from sdpy.jobs.runner import Runner

    paths = sys.stdout
    with ExitStack() as stack:
        if how.engine == "ray":  # Ray prints what it has to say on standard output
            stack.enter_context(redirect_stdout(sys.stderr))
        engine = _engine(prepared, how)
        stack.enter_context(progress)
        if prepared.comments:
            lines = counted(prepared.comments, "line")
            progress.line(f"{lines} left out as comments, for they begin with #")
        remarks = sum(1 for job in prepared.jobs if job.remarks)
        if remarks:
            progress.line(f"long prompts in {counted(remarks, 'job')}; --dry-run says which")
        _tell(stop, progress)
        ended = Ended(0, 0, 0, 0)
        with closing(Runner(prepared, engine, stop).run()) as events:
            for event in events:
                if stop.is_untold:
                    stop.is_untold = False
                    progress.line(_STOPPING)
                progress.show(event)
                if isinstance(event, ImageDone) and not how.quiet:
                    print(event.path, flush=True, file=paths)
                elif isinstance(event, Ended):
                    ended = event
    return ended


def _engine(prepared: Batch, how: BatchOptions) -> Engine:
    from sdpy.jobs.engines.local import LocalEngine
    from sdpy.jobs.painter import Painter

    painter = Painter(
        prepared.targets.defaults,
        metadata=not how.no_metadata,
        overwrite=how.overwrite,
        sessions=prepared.checker.sessions,
    )
    devices = _devices(how)
    if how.engine == "ray":
        from sdpy.jobs.engines.ray import RayEngine

        return RayEngine(painter, address=how.address, workers=how.workers)
    if devices is not None:
        from sdpy.jobs.engines.processes import ProcessEngine

        return ProcessEngine(painter, devices)
    return LocalEngine(painter)


def _devices(how: BatchOptions) -> list[str] | None:
    if how.devices is None:
        return None
    devices = [device.strip() for device in how.devices.split(",") if device.strip()]
    if not devices:
        raise UsageError("--devices: name at least one, such as cuda:0")
    return devices


def _check_engine(defaults: OptionGroups, how: BatchOptions) -> None:
    if how.engine not in ENGINES:
        raise UsageError(f"unknown --engine '{how.engine}': use one of {', '.join(ENGINES)}")
    if how.devices is not None and how.engine == "ray":
        raise UsageError("--devices is for this machine, --engine ray for others: leave one out")
    if how.devices is not None and defaults.model.device is not None:
        raise UsageError("--device and --devices both say where to compute: leave one out")
    if how.engine != "ray" and (how.address is not None or how.workers is not None):
        raise UsageError("--address and --workers are for --engine ray")


def _finish(ended: Ended, prepared: Batch, how: BatchOptions, progress: Progress) -> None:
    """Say how it went; leave with the exit code that says it, too."""
    if not how.quiet and how.progress != "json":
        shown = f"{counted(ended.images, 'image')} made"
        shown += f", {ended.done} were there already" if ended.done else ""
        shown += f", {ended.left} are left" if ended.left else ""
        progress.line(shown)
    if ended.signal is not None:
        raise typer.Exit(128 + ended.signal)
    if ended.failed:
        raise JobsError(
            f"{counted(ended.failed, 'job')} failed; {prepared.failures.path} says why, "
            "--retry-failed tries again"
        )


def _tell(stop: Stop, progress: Progress) -> None:
    """From here on, a signal finishes the images in hand first, and says so."""
    stop.is_listening = True
    stop.tell = progress.line


@contextmanager
def _signals(grace: float | None) -> Iterator[Stop]:
    """Take Ctrl-C and SIGTERM as requests to stop; the second one stops at once."""
    from sdpy.jobs.runner import Stop

    stop = Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.signal is not None or not stop.is_listening:
            stop.signal = number
            raise KeyboardInterrupt
        stop.signal = number
        limit = GRACE_AFTER_SIGTERM if grace is None and number == signal.SIGTERM else grace
        if limit is not None:
            stop.deadline = time.monotonic() + limit
        try:
            stop.tell(_STOPPING)
        except RuntimeError:  # it came while another line was being written
            stop.is_untold = True

    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        signal.signal(number, handle)
    try:
        yield stop
    except KeyboardInterrupt:
        print("sdpy: interrupted", file=sys.stderr)
        raise typer.Exit(128 + (stop.signal or signal.SIGINT)) from None
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
