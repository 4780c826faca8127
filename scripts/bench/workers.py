"""What the benchmark measures, each task in a process of its own.

    python -m scripts.bench.workers JOB.json

``JOB.json`` holds the fields of `scripts.bench.jobs.Job`. The task's result goes to the JSON file
that it names.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench import with_diffusers, with_sdpy
from scripts.bench.jobs import Job
from scripts.bench.measuring import matrix_product
from scripts.bench.models import prepare
from sdpy.runtime.threads import wait_passively

TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "prepare": prepare,
    "matrix product": matrix_product,
    "sdpy phase": with_sdpy.sdpy_phase,
    "sdpy load": with_sdpy.sdpy_load,
    "sdpy images": with_sdpy.sdpy_images,
    "diffusers phase": with_diffusers.diffusers_phase,
    "diffusers formats": with_diffusers.diffusers_formats,
    "diffusers load": with_diffusers.diffusers_load,
    "diffusers images": with_diffusers.diffusers_images,
    "diffusers generate": with_diffusers.diffusers_generate,
    "compiled phase": with_diffusers.compiled_phase,
}


def main(path: Path) -> None:
    """Do the job in a file."""
    job = Job(**json.loads(path.read_text(encoding="utf-8")))
    if job.task.startswith("sdpy"):
        wait_passively()  # as the command does, before torch is imported
    if job.code_folder is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = job.code_folder
    result = TASKS[job.task](job)
    Path(job.result).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
