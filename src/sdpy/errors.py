"""The errors that sdpy raises on purpose, and the exit code that each gives the command line.

::

    SdpyError            1   anything below, caught in one place (``sdpy.cli.app``)
    ├── UsageError       2   an option or argument has a value that cannot work
    ├── WeightsError     3   a checkpoint or vocabulary is missing, broken or of the wrong kind
    ├── ImageError       4   an input image or mask cannot be used
    ├── OutputError      5   a result could not be written after the work had started
    ├── HubError         6   a model hub cannot be reached, or does not give what was asked for
    ├── ShortageError    7   there is not enough memory
    ├── GenerationError  8   what was generated is no image
    └── JobsError        9   some jobs of a batch failed; the others are done

Every message is one line: what is wrong, where, and what to do next.
"""

from __future__ import annotations

import errno


class SdpyError(Exception):
    """Base of all errors that sdpy raises on purpose."""

    exit_code = 1


class UsageError(SdpyError):
    """An option or argument has a value that cannot work."""

    exit_code = 2


class WeightsError(SdpyError):
    """A checkpoint or vocabulary is missing, broken or of the wrong kind."""

    exit_code = 3


class ImageError(SdpyError):
    """An input image or mask cannot be used."""

    exit_code = 4


class OutputError(SdpyError):
    """A result could not be written after the work had started."""

    exit_code = 5


class HubError(SdpyError):
    """A model hub cannot be reached, or does not give what was asked for."""

    exit_code = 6


class ShortageError(SdpyError):
    """There is not enough memory, or would not be."""

    exit_code = 7


class GenerationError(SdpyError):
    """What was generated is no image: not numbers, or one colour."""

    exit_code = 8


class JobsError(SdpyError):
    """Some jobs of a batch failed; the others are done."""

    exit_code = 9


_SHORTAGES = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "MPS backend out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "cannot allocate memory",
    # Of a library that does not fit below a limit of the address space.
    "failed to map segment",
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that memory is lacking on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(words in str(error) for words in _SHORTAGES)
