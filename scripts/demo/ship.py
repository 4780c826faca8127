"""Ship a trained demo model: measure it, and put it in the place of the bundled one.

    python -m scripts.demo.ship runs/demo256

The folder is that of a run of `scripts.demo.train`, with the exported files in ``files``; or one
into which the pieces of such a run have been joined (``--join PIECES``). It is evaluated first,
unless it has been: the results are in ``evaluation.json``. Where a goal is missed, they are told
and nothing is shipped, except ``--anyway``. Then the files are copied into the package, the model
card is written, and the images of the README are generated anew. What is left is printed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.demo import evaluate
from scripts.demo.card import Facts, goals, write_card
from scripts.demo.classifier import CLASSIFIER_FILE
from scripts.demo.training import pieces
from scripts.engine import sdpy_command
from scripts.reports import tell
from sdpy.zoo.bundle import BUNDLE, BUNDLE_FILE

EVALUATION_FILE = "evaluation.json"

PARTS = ("adherence", "settings", "edits", "turbo", "cost", "sheet")
"""What is measured, after the classifier."""

MEDIA: Mapping[str, Sequence[str]] = {
    "lighthouse": ("generate", "lighthouse at dark"),
    "red_lighthouse": ("generate", "a red lighthouse at noon"),
    "castle": ("generate", "a castle at dusk"),
    "robot": ("generate", "a rusty robot holding a torch at night"),
    "boat": ("generate", "a green sailing boat at noon"),
    "trees": ("generate", "trees in the snow"),
    "cat": ("generate", "a cat at dusk"),
    "house": ("generate", "a yellow house at dawn"),
    "img2img": (
        *("img2img", "{media}/in_img2img.jpg"),
        *("--prompt", "a lighthouse at night", "--strength", "0.7"),
    ),
}
"""Images of the README, and the words of the command that makes them."""

LEFT = """Shipped. By hand:
- look at {run}/sheet.png, prompts.png, failures.png and edits.png, and at media/;
- README.md, docs/models.md: what the model knows, its size, the width of the images;
- python -m scripts.figures.compare_samplers and scripts.bench.measure_approximations, whose figures
  are of the bundled model;
- pytest tests/demo; CHANGELOG.md; and what only the former recipe used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--join", type=Path, help="folder of its pieces, to be joined first")
    parser.add_argument("--package", type=Path, default=BUNDLE, help="folder to put the files into")
    parser.add_argument("--media", type=Path, default=Path("media"), help="folder of the images")
    parser.add_argument("--anyway", action="store_true", help="ship it even if a goal is missed")
    options = parser.parse_args(arguments)
    run: Path = options.run
    files = run / "files"
    if options.join is not None:
        try:
            join(options.join, run)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
    if not (files / BUNDLE_FILE).exists():
        raise SystemExit(
            f"error: {files} holds no exported model: run the stage export of "
            "scripts.demo.train, or name the folder of the run's pieces with --join"
        )
    measure(run, files)
    facts = Facts.of(run, files, run / EVALUATION_FILE)
    reached = goals(facts)
    for goal in reached:
        print(f"{'reached' if goal.reached else 'MISSED '}: {goal.what}")
    if not all(goal.reached for goal in reached) and not options.anyway:
        raise SystemExit("error: not all goals are reached; --anyway ships it nevertheless")
    ship(files, options.package)
    (options.package / "README.md").write_text(write_card(facts), encoding="utf-8")
    draw_media(options.package, options.media)
    print(LEFT.format(run=run))


def join(folder: Path, run: Path) -> None:
    """Unpack the pieces of a run: the bundled files into ``files``, all others beside it."""
    (run / "files").mkdir(parents=True, exist_ok=True)
    for file in pieces.join(folder, run):
        if file.suffix == ".ot" or file.name in ("merges.txt", BUNDLE_FILE):
            file.replace(run / "files" / file.name)


def measure(run: Path, files: Path) -> None:
    """Evaluate the files, with a classifier that is trained if the run has none."""
    target = run / EVALUATION_FILE
    if target.exists():
        return
    parts = PARTS if (run / CLASSIFIER_FILE).exists() else ("classifier", *PARTS)
    evaluate.main([*parts, "--run", str(run), "--files", str(files), "--json", str(target)])


def ship(files: Path, package: Path) -> None:
    """Put the files into the package, in the place of all weights that are there."""
    for old in package.glob("*.ot"):
        old.unlink()
    for file in files.iterdir():
        shutil.copyfile(file, package / file.name)


def draw_media(package: Path, media: Path) -> None:
    """Generate the images of the README with the model in the package."""
    for name, words in MEDIA.items():
        tell(f"{media}/{name}.png")
        command = [*sdpy_command(package), *(word.format(media=media) for word in words)]
        command += ["--model", "demo", "--quiet", "--overwrite", "--output", f"{media}/{name}.png"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
