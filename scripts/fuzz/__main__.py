"""``python -m scripts.fuzz TARGET``: search with atheris, guided by the branches that are taken.

Needs the extra ``fuzz``. Of each place where something fails the first input is written to the
folder of ``--corpus``, as ``find-...``, and the search goes on; one that takes too long or too much
memory ends it, as ``timeout-...`` or ``oom-...``. Once mended, finds belong into
``tests/data/fuzz/TARGET``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

FINDS = Path(__file__).parents[2] / "tests" / "data" / "fuzz"
SECONDS_EACH = 10
MEGABYTES_EACH = 1000
MEGABYTES_AT_REST = 600
"""About what Python takes with torch and Pillow."""


class _Finds:
    """Runs a target, and keeps the first input that fails at each place."""

    def __init__(self, run: Callable[[bytes], None], folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        try:
            self.run(data)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
            if place not in self.known:
                self.known.add(place)
                (self.folder / f"find-{place}").write_bytes(data)
                traceback.print_exc()


def main() -> None:
    """Fuzz one target until the time or the number of runs is over, or something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=-1, help="inputs to try")
    parser.add_argument("--seconds", type=int, default=600, help="time to search")
    parser.add_argument("--corpus", type=Path, help="folder of what was learned, to go on from")
    chosen = parser.parse_args()

    import atheris

    # What is imported here for the first time is instrumented.
    with atheris.instrument_imports(include=["sdpy", "zipfile", "pickletools", "gzip", "csv"]):
        from scripts.fuzz.seeds import seeds
        from scripts.fuzz.targets import TARGETS, clean_up
    if chosen.target not in TARGETS:
        parser.error(f"use one of {', '.join(TARGETS)}")
    target = TARGETS[chosen.target]
    corpus = chosen.corpus or Path(tempfile.mkdtemp(prefix=f"sdpy-fuzz-{chosen.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(chosen.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        str(corpus),
        *([str(FINDS / chosen.target)] if (FINDS / chosen.target).is_dir() else []),
        f"-runs={chosen.runs}",
        f"-max_total_time={chosen.seconds}",
        f"-timeout={SECONDS_EACH}",
        f"-rss_limit_mb={MEGABYTES_AT_REST + MEGABYTES_EACH}",
        f"-artifact_prefix={corpus}/",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, _Finds(target.run, corpus))
    try:
        atheris.Fuzz()
    finally:
        clean_up()


if __name__ == "__main__":
    main()
