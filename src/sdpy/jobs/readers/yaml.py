"""YAML: a list of jobs, or ``jobs:`` with one, beside options that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

from sdpy.errors import UsageError
from sdpy.jobs.job import Entry, Fault, Place
from sdpy.jobs.readers.json_lines import entry_of

SUFFIXES = (".yaml", ".yml")


def read(file: TextIO, source: str, dialect: str | None) -> Iterator[Entry | Fault]:
    """Yield what each element says; see `sdpy.jobs.readers.read_jobs`.

    Raises:
        UsageError: PyYAML is not there, or the file is not YAML or has no jobs.
    """
    try:
        import yaml
    except ImportError:
        raise UsageError(
            f"{source}: YAML takes PyYAML: install it with pip install pyyaml, or write JSON Lines"
        ) from None
    text = file.read()
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        shared: dict[str, Any] = {}
        if isinstance(root, yaml.MappingNode):
            names = {key.value: value for key, value in root.value}
            jobs = names.pop("jobs", names.pop("job", None))
            shared = {key: _value(loader, node) for key, node in names.items()}
            root = jobs
        if not isinstance(root, yaml.SequenceNode):
            raise UsageError(f"{source}: has no list of jobs; write '- prompt: ...' for each")
        for node in root.value:
            value = _value(loader, node)
            place = Place(source, node.start_mark.line + 1)
            yield entry_of({**shared, **value} if isinstance(value, dict) else value, place)
    # Its constructors raise the others for such as dates and numbers that cannot be.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(f"{source}: is not YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _value(loader: Any, node: Any) -> Any:
    return loader.construct_object(node, deep=True)
