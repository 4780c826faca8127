"""Checking jobs before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpy.checkpoints import file_state
from sdpy.errors import UsageError
from sdpy.jobs.job import Job
from sdpy.jobs.options import OptionGroups
from sdpy.jobs.settings import Group, Settings, SettingsFinder
from sdpy.pipelines.plan import plan_request
from sdpy.pipelines.values import LARGEST_SEED, RANDOM


@dataclass(frozen=True, slots=True, eq=False)
class CheckedJob:
    """A job that can work, as far as can be told before it does.

    Attributes:
        job: the job.
        group: with which others it can be computed together.
        key: identifies the image: the same for the same options, files and numerics.
        remarks: what the user should know.
    """

    job: Job
    group: Group
    key: str
    remarks: tuple[str, ...] = ()


class Checker:
    """Checks jobs; remembers what many of them have in common.

    Args:
        defaults: options of the command.
        device: on which all jobs run, whatever they say; None for their own.
        thorough: whether the pixels of input images are read, and not their sizes alone.

    Attributes:
        sessions: of their models; whoever made the checker closes them.
    """

    def __init__(
        self, defaults: OptionGroups, *, device: str | None = None, thorough: bool = False
    ) -> None:
        self.defaults = defaults
        self._finder = SettingsFinder(defaults, device=device, thorough=thorough)
        self.sessions = self._finder.sessions
        self._seen: dict[bytes, int] = {}

    def check(self, job: Job) -> CheckedJob:
        """Check a job.

        Raises:
            SdpyError: it cannot work.
        """
        options, task = job.options, self.defaults.task
        image, mask = self._finder.inputs_of(job)
        prompt = str(options.get("prompt", task.prompt))
        negative = options.get("negative_prompt", self.defaults.generation.negative_prompt)
        settings = self._finder.find(job)
        seed = options.get("seed", self.defaults.generation.seed)
        if seed != RANDOM and not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"seed {seed}: use 0 to {LARGEST_SEED}, or random")
        remarks = self._check_prompts(settings, prompt, negative)
        key = self._key(
            settings, job.template or prompt if seed == RANDOM else prompt, negative, seed
        )
        for path in (image, mask):
            if path is not None:
                key.update(self._hash_of(settings, path).encode())
        # The same image may be asked for twice, under two names.
        count = self._seen[key.digest()] = self._seen.get(key.digest(), 0) + 1
        key.update(f"{count}".encode())
        return CheckedJob(job, settings.group, key.hexdigest()[:32], remarks)

    def values(self, job: Job) -> Mapping[str, Any]:
        """What the name of its file can say of a job that was checked, but for its index."""
        return self._finder.find(job).values

    def _key(self, settings: Settings, prompt: str, negative: str | None, seed: int | str) -> Any:
        text = json.dumps([settings.content, prompt, negative, seed])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass"))

    def _hash_of(self, settings: Settings, path: str) -> str:
        return self.sessions.find(settings.model).hashes.sha256(file_state(Path(path)))

    def _check_prompts(
        self, settings: Settings, prompt: str, negative: str | None
    ) -> tuple[str, ...]:
        """Refuse prompts that cannot be read; say which take more than a chunk."""
        request, room = settings.request, settings.room
        # A token takes a character at least; only an embedding takes more than one.
        texts = (prompt, negative or "", request.prompt_2 or "", request.negative_prompt_2 or "")
        is_short = all(len(text) <= room and text.isascii() for text in texts)
        has_syntax = any(sign in text for text in texts for sign in "<[{")
        if is_short and not has_syntax and "AND" not in prompt and not request.embedding:
            return ()
        plan = plan_request(
            self.sessions.find(settings.model),
            replace(request, prompt=prompt, negative_prompt=negative),
        )
        remarks = []
        for number, schedule in plan.prompts.distinct:
            for what, tokens in schedule.all_prompts():
                if tokens.dropped:
                    remarks.append(f"the {what}{number} is too long, left out: '{tokens.dropped}'")
                elif len(tokens.chunks) > 1:
                    remarks.append(f"the {what}{number} takes {tokens}")
        return tuple(dict.fromkeys(remarks))
