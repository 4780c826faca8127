"""How scripts report: progress on stderr, and tables in the documentation.

Tables are made by `sdpy.benchmark.figures.table`. A table that a script writes into a Markdown file
stands there between two comments that name it::

    <!-- begin: samplers -->

    | sampler | ... |

    <!-- end: samplers -->
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def tell(text: str) -> None:
    """Print a line of progress to stderr, beside the results on stdout."""
    print(text, file=sys.stderr, flush=True)


def write_between(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the comments that name it in a Markdown file; nothing else changes.

    Raises:
        ValueError: the file has no such comments, or has them more than once.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    after, count = pattern.subn(lambda _: f"\n{text}\n\n", before)
    if count != 1:
        raise ValueError(f"{path}: {begin} and {end} are there {count} times instead of once")
    path.write_text(after, encoding="utf-8")
