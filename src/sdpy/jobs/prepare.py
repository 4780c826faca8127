"""Everything that is done before the first image: jobs are read, checked, named and ordered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdpy.errors import SdpyError, UsageError
from sdpy.jobs.check import CheckedJob, Checker
from sdpy.jobs.finished import Finished
from sdpy.jobs.job import Comment, Fault, Job
from sdpy.jobs.journal import FAILED_NAME, LineFile
from sdpy.jobs.settings import Group
from sdpy.jobs.shards import Shard
from sdpy.jobs.targets import Targets, below_root, is_known_before, root_of
from sdpy.jobs.wildcards import Wildcards


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How a batch is done.

    Attributes:
        overwrite: whether files of others may be replaced.
        ordered: whether jobs keep their order.
        fail_fast: whether the first failure ends the batch.
        retry_failed: whether jobs are tried again that failed in an earlier run.
        metadata: whether images say how they were made.
        shard: which share of the batch is done.
    """

    overwrite: bool = False
    ordered: bool = False
    fail_fast: bool = False
    retry_failed: bool = False
    metadata: bool = True
    shard: Shard = Shard()


@dataclass(eq=False)
class Batch:
    """Jobs that are ready to be computed.

    Attributes:
        settings: how they are done.
        checker: that has checked them.
        targets: names their files.
        folder: that journal and failures are written to.
        jobs: those that can work.
        faults: those that cannot, and lines that are none.
        comments: how many lines were left out.
        bundles: numbers of jobs that are computed together, in the order of the work; of this
            shard.
        finished: what is there already.
        failed: what failed in earlier runs, by keys.
        failures: the file of it.
        wildcards: that prompts have whose seed is yet to be drawn.
        are_numbered: whether all names have the index of the job, so that no two are the same.
    """

    settings: BatchSettings
    checker: Checker
    targets: Targets
    folder: Path
    jobs: list[CheckedJob] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    comments: int = 0
    bundles: Sequence[tuple[int, ...]] = ()
    finished: Finished = field(init=False)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: LineFile = field(init=False)
    wildcards: Wildcards | None = None
    are_numbered: bool = True

    def __post_init__(self) -> None:
        self.failures = LineFile(self.folder / FAILED_NAME)
        self.finished = Finished(self.folder, ())

    def is_done(self, number: int) -> bool:
        """Whether the image of a job is there."""
        return self.jobs[number].key in self.finished.paths

    def is_given_up(self, number: int) -> bool:
        """Whether a job failed in an earlier run and is not to be tried again."""
        return self.jobs[number].key in self.failed and not self.settings.retry_failed

    def prompt_and_seed(self, job: Job) -> tuple[str, int | str]:
        """As they are known before the job is done."""
        defaults = self.targets.defaults
        prompt = str(job.options.get("prompt", defaults.task.prompt))
        return prompt, job.options.get("seed", defaults.generation.seed)

    def path(self, number: int) -> Path | None:
        """Where the image of a job will be; None if that is not known yet."""
        job = self.jobs[number].job
        prompt, seed = self.prompt_and_seed(job)
        template = self.targets.template(job)
        if not is_known_before(template, job, seed):
            return None
        shared = self.checker.values(job)
        values = self.targets.values(job, template, shared, prompt, seed)
        return template.render(values)

    @property
    def numbers(self) -> Iterator[int]:
        """Of the jobs of this shard, in the order of the work."""
        for bundle in self.bundles:
            yield from bundle


def prepare(
    found: Iterable[Job | Fault | Comment],
    checker: Checker,
    targets: Targets,
    settings: BatchSettings,
    *,
    wildcards: Wildcards | None = None,
    writes: bool = True,
) -> Batch:
    """Check all jobs, find out what is done, and put the rest into an order.

    Args:
        found: the jobs.
        checker: checks them.
        targets: names their files.
        settings: how they are done.
        wildcards: with which prompts were made.
        writes: whether the journal may be written to.

    Raises:
        UsageError: a name that cannot be, two jobs with one name, or a file in the way.
        OutputError: the folder cannot be made.
    """
    standard = targets.standard()
    batch = Batch(settings, checker, targets, root_of(standard)[0], wildcards=wildcards)
    roots = {root_of(standard): None}
    for one in found:
        if isinstance(one, Comment):
            batch.comments += 1
        elif isinstance(one, Fault):
            batch.faults.append(one)
        else:
            try:
                checked = checker.check(one)
                template = targets.template(one)
            except SdpyError as error:
                batch.faults.append(Fault(one.place, error, one.index))
                continue
            roots[root_of(template)] = None
            batch.are_numbered = batch.are_numbered and "index" in template.fields
            named = hashlib.sha256(f"{checked.key} {below_root(template)}".encode())
            batch.jobs.append(replace(checked, key=named.hexdigest()[:32]))
    numbered = list(range(len(batch.jobs)))
    bundles = bundled([batch.jobs[k].group for k in numbered], ordered=settings.ordered)
    batch.bundles = settings.shard.part(bundles)
    batch.faults = list(settings.shard.part(batch.faults))
    batch.finished = Finished(batch.folder, roots)
    if writes:
        _make_folder(batch.folder)
        batch.finished.sweep()
    if batch.folder.is_dir():
        batch.finished.find(writes=writes)
        batch.failed = {
            str(line["key"]): line for line in batch.failures.new_lines() if line.get("key")
        }
    _check_names(batch)
    return batch


def bundled(groups: Sequence[Group], *, ordered: bool) -> list[tuple[int, ...]]:
    """Numbers of jobs that are computed together, in the order of the work.

    What a bundle is made of depends on nothing but the jobs, so that an image is computed with
    the same others each time, and is the same to the last digit. Models change less often than
    LoRAs, those less often than sizes; apart from that, jobs keep their order.

    Args:
        groups: of the jobs.
        ordered: whether jobs keep their order altogether.
    """
    sequences: list[tuple[Group, list[int]]] = []
    if ordered:
        for number, group in enumerate(groups):
            if not sequences or sequences[-1][0] is not group:
                sequences.append((group, []))
            sequences[-1][1].append(number)
    else:
        by_group: dict[Group, list[int]] = {}
        for number, group in enumerate(groups):
            by_group.setdefault(group, []).append(number)
        ranks: dict[tuple[Hashable, ...], int] = {}
        for group in by_group:
            for level in range(1, len(group.order) + 1):
                ranks.setdefault(group.order[:level], len(ranks))

        def rank(item: tuple[Group, list[int]]) -> tuple[int, ...]:
            order = item[0].order
            return tuple(ranks[order[:level]] for level in range(1, len(order) + 1))

        sequences = sorted(by_group.items(), key=rank)
    return [
        tuple(numbers[k : k + group.batch])
        for group, numbers in sequences
        for k in range(0, len(numbers), group.batch)
    ]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made ({error.strerror}); choose another by --output"
        ) from error


def _check_names(batch: Batch) -> None:
    """Refuse names that two jobs have, and names of files that are there and of no job."""
    if batch.are_numbered and not batch.finished.has_others(job.key for job in batch.jobs):
        return
    seen: dict[str, int] = {}
    for number in range(len(batch.jobs)):
        path = batch.path(number)
        if path is None:
            continue
        name = os.path.normpath(path)
        if name in seen:
            first, second = batch.jobs[seen[name]].job, batch.jobs[number].job
            raise UsageError(
                f"{first.place} and {second.place} would both write {path}; tell them apart by "
                "fields in --output, such as {line}, {index} or {seed}"
            )
        seen[name] = number
    if batch.settings.overwrite:
        return
    in_the_way = [
        name
        for name, number in seen.items()
        if not batch.is_done(number) and batch.finished.has_file(Path(name))
    ]
    if in_the_way:
        count, name = len(in_the_way), in_the_way[0]
        raise UsageError(
            f"{name} is there already, and was not made by this job ({count} such "
            f"file{'s' if count > 1 else ''}): choose another --output, or replace with --overwrite"
        )
