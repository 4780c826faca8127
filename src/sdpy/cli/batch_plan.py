"""What ``sdpy batch --dry-run`` prints."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from sdpy.cli.batch_progress import counted

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.jobs.prepare import Batch


def print_plan(batch: Batch, *, as_json: bool) -> int:
    """Print the images that would be made, and say what is wrong; returns how many jobs are."""
    from sdpy.jobs.estimate import estimate
    from sdpy.runtime.memory import show_size

    needed = estimate(batch)
    rows = (_row(batch, number) for number in batch.numbers)
    faults = [
        {"file": fault.place.source, "line": fault.place.line, "reason": str(fault.error)}
        for fault in batch.faults
    ]
    if as_json:
        head = {
            "seconds": needed.seconds,
            "memory": needed.memory,
            "to_do": needed.images,
            "done": needed.done,
            "failures": faults,
        }
        _print_json(head, rows)
        return len(faults)
    for row in rows:
        state = "done" if row["done"] else f"{row['file']}:{row['line']}"
        print(f"{row['path'] or '(known when it is made)'}\t{state}\t{row['prompt']}")
        for remark in row["remarks"]:
            print(f"{row['file']}:{row['line']}: {remark}", file=sys.stderr)
    for fault in batch.faults:
        print(fault, file=sys.stderr)
    time = "" if needed.seconds is None else f", about {_duration(needed.seconds)}"
    memory = f", {show_size(int(needed.memory))} of memory" if needed.images else ""
    print(
        f"{counted(needed.images, 'image')} to be made, {needed.done} done already, "
        f"{counted(len(batch.faults), 'job')} that cannot work{time}{memory}",
        file=sys.stderr,
    )
    return len(faults)


def _row(batch: Batch, number: int) -> dict[str, Any]:
    checked = batch.jobs[number]
    job = checked.job
    prompt, seed = batch.prompt_and_seed(job)
    done = batch.is_done(number)
    path = batch.finished.paths[checked.key] if done else batch.path(number)
    return {
        "path": None if path is None else str(path),
        "file": job.place.source,
        "line": job.place.line,
        "index": job.index,
        "prompt": prompt,
        "seed": seed,
        "options": {name: value for name, value in job.options.items() if name != "prompt"},
        "done": done,
        "remarks": list(checked.remarks),
    }


def _print_json(head: dict[str, Any], rows: Any) -> None:
    """One object; written a row at a time, for there may be many."""
    text = json.dumps(head, ensure_ascii=False, indent=2)
    print(text.removesuffix("\n}") + ',\n  "images": [', end="")
    for k, row in enumerate(rows):
        print("," * bool(k) + "\n    " + json.dumps(row, ensure_ascii=False), end="")
    print("\n  ]\n}")


def _duration(seconds: float) -> str:
    from sdpy.benchmark.figures import duration

    return duration(seconds)
