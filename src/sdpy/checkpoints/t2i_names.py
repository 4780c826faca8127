"""The names of T2I-Adapters' authors, and of ComfyUI, which has taken them over.

There, a full adapter's ResNets are numbered straight through, of all four levels together, and the
first of a level holds what leads to the level's channels. A light adapter's levels are those of
diffusers, under other names. Some files have all names under ``adapter.``, as diffusers has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

LEVELS = 4
_PREFIX = "adapter."
_LIGHT_RESNET = re.compile(r"body\.0\.body\.")


def original_modules(names: Collection[str]) -> dict[str, str]:
    """The modules of an adapter, the authors' with ours.

    Args:
        names: the authors'.
    """
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in names) else ""
    plain = [name.removeprefix(prefix) for name in names]
    if any(map(_LIGHT_RESNET.match, plain)):
        resnets = _count(plain, r"body\.\d+\.body\.(\d+)\.")
        return dict(_light_modules(resnets, prefix))
    return dict(_full_modules(_count(plain, r"body\.(\d+)\.") // LEVELS, prefix))


def our_modules(names: Collection[str]) -> dict[str, str]:
    """The same, given our names."""
    resnets = _count(names, r"adapter\.body\.\d+\.resnets\.(\d+)\.")
    is_light = "adapter.conv_in.weight" not in names
    return dict((_light_modules if is_light else _full_modules)(resnets, ""))


def _full_modules(resnets: int, prefix: str) -> Iterator[tuple[str, str]]:
    yield f"{prefix}conv_in", "adapter.conv_in"
    for i in range(LEVELS):
        yield f"{prefix}body.{i * resnets}.in_conv", f"adapter.body.{i}.in_conv"
        for j in range(resnets):
            yield f"{prefix}body.{i * resnets + j}", f"adapter.body.{i}.resnets.{j}"


def _light_modules(resnets: int, prefix: str) -> Iterator[tuple[str, str]]:
    for i in range(LEVELS):
        yield f"{prefix}body.{i}", f"adapter.body.{i}"
        for j in range(resnets):
            yield f"{prefix}body.{i}.body.{j}", f"adapter.body.{i}.resnets.{j}"


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the start of a name."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
