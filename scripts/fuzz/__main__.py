"""``python -m scripts.fuzz TARGET``: search with atheris, guided by the branches that are taken.

Needs the extra ``fuzz``. Finds are written to the folder of ``--corpus``, as ``crash-...``,
``timeout-...`` and ``oom-...``; once mended, they belong into ``tests/data/fuzz/TARGET``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

FINDS = Path(__file__).parents[2] / "tests" / "data" / "fuzz"
SECONDS_EACH = 10
MEGABYTES_EACH = 1000
MEGABYTES_AT_REST = 600
"""About what Python takes with torch and Pillow."""


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
    atheris.Setup(arguments, target.run)
    try:
        atheris.Fuzz()
    finally:
        clean_up()


if __name__ == "__main__":
    main()
