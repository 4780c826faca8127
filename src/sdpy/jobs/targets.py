"""Where the images of jobs go: their templates, the folders of these, and their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sdpy.errors import UsageError
from sdpy.images.paths import FORMATS
from sdpy.jobs.fields import moment_fields, prompt_fields
from sdpy.jobs.job import Job, Place
from sdpy.jobs.names import NameTemplate
from sdpy.jobs.options import OptionGroups, job_options
from sdpy.pipelines.values import RANDOM

_OWN = re.compile(r"\{(_\w*)")
_OF_PROMPTS = frozenset(("prompt", "slug", "words"))


@cache
def _template(text: str, own: tuple[str, ...]) -> NameTemplate:
    known = {option.name for option in job_options().values()}
    template = NameTemplate.parse(text, (*known, *own))
    if Path(text).suffix.lower() not in FORMATS:
        raise UsageError(
            f"the name {text}: unknown image format; let it end in one of {', '.join(FORMATS)}"
        )
    return template


class Targets:
    """The names of the files of jobs.

    Args:
        defaults: the command's options.
        moment: when the run began, for names with a date.
    """

    def __init__(self, defaults: OptionGroups, moment: datetime) -> None:
        self.defaults = defaults
        self.moment = moment_fields(moment)

    def standard(self) -> NameTemplate:
        """What files are called where jobs do not say it, with fields of jobs' own.

        Raises:
            UsageError: an unknown field or format.
        """
        own = dict.fromkeys(_OWN.findall(self.defaults.task.output))
        return self.template(Job(Place("command line", 1), 1, 0, {}, own))

    def template(self, job: Job) -> NameTemplate:
        """What the job's file is called.

        Raises:
            UsageError: an unknown field or format.
        """
        task, options = self.defaults.task, job.options
        text = str(options.get("output", task.output))
        name = options.get("output_name", task.output_name)
        folder = options.get("output_folder", task.output_folder)
        if name is not None:
            suffix = "" if Path(name).suffix.lower() in FORMATS else Path(text).suffix
            literal = f"{name}{suffix}".replace("{", "{{").replace("}", "}}")
            text = os.path.join(os.path.dirname(text), literal)
        if folder is not None:
            literal = os.fspath(folder).replace("{", "{{").replace("}", "}}")
            text = os.path.join(literal, os.path.basename(text))
        return _template(text, tuple(job.own))

    def values(
        self,
        job: Job,
        template: NameTemplate,
        shared: Mapping[str, Any],
        prompt: str,
        seed: int | str,
    ) -> dict[str, Any]:
        """What the fields of its name stand for."""
        of_prompt = prompt_fields(prompt) if template.fields & _OF_PROMPTS else {}
        known = {
            **{name: _as_path(name, value) for name, value in job.options.items()},
            **shared,
            **self.moment,
            **of_prompt,
            **job.own,
            "line": job.place.line,
            "index": job.index,
            "sample": job.sample + 1,
            "seed": seed,
        }
        return {name: known.get(name, self._default(name)) for name in template.fields}

    def _default(self, name: str) -> Any:
        one = job_options().get(name)
        if one is None or one.group is None:
            return None
        groups = vars(self.defaults).values()
        return next(getattr(group, name) for group in groups if isinstance(group, one.group))


def _as_path(name: str, value: Any) -> Any:
    """A value of an option; of a path, a name has the stem."""
    is_path = job_options()[name].type is Path and isinstance(value, str)
    return Path(value) if is_path else value


def is_known_before(template: NameTemplate, job: Job, seed: int | str) -> bool:
    """Whether the name can be told before the image is made."""
    if template.has_counter:
        return False
    if seed != RANDOM:
        return True
    uses_prompt = job.template is not None and bool(template.fields & _OF_PROMPTS)
    return "seed" not in template.fields and not uses_prompt


def root_of(template: NameTemplate) -> tuple[Path, bool]:
    """The folder that all files of a template are in, and whether they are in folders below it."""
    first = next(iter(template.parts), "")
    literal = first if isinstance(first, str) else ""
    folder = os.path.dirname(literal)
    rest = "".join(_texts(template))[len(folder) :].lstrip(os.sep)
    return Path(folder or "."), os.sep in rest


def below_root(template: NameTemplate) -> str:
    """What distinguishes a template from others in the same folder."""
    first = next(iter(template.parts), "")
    folder = os.path.dirname(first) if isinstance(first, str) else ""
    return template.text[len(folder) :].lstrip(os.sep)


def _texts(template: NameTemplate) -> Iterator[str]:
    for part in template.parts:
        yield part if isinstance(part, str) else f"{{{part.name}}}"
