"""Measure the demo model: does a picture show what the prompt asked for?

    python scripts/evaluate_demo.py reader --run runs/demo
    python scripts/evaluate_demo.py adherence settings edits cost sheet --run runs/demo

A small classifier, the reader, is trained on renders of its own and judges pictures by their four
attributes: subject, colour, time of day, weather. The parts print Markdown tables:

    reader      trains the reader into ``RUN/reader.pt``, and reads fresh renders with it
    adherence   prompts of combinations that were withheld from training, painted and read back,
                beside renders and the autoencoder's reconstructions of the same scenes;
                the pictures that were misread go to ``RUN/failures.png``
    settings    the same with other numbers of steps and guidance scales
    edits       img2img and inpaint: one attribute of a render is changed, the others are to stay
    cost        bytes of the files, and seconds of ``sdpy generate`` as a process
    sheet       prompts by seeds, ``RUN/prompts.png``, to look at

The bundled weights are measured unless ``--files`` names a folder of others, or ``--state`` asks
for the averages of an unfinished training in ``RUN``. Everything is painted by sdpy's pipelines,
one picture after another as they do it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import demo_scenes as scenes
import train_demo
from demo_scenes import Scene
from sdpy import pipelines
from sdpy.checkpoints import write_checkpoint
from sdpy.components import COMPONENTS
from sdpy.images.mask import composite
from sdpy.images.tensors import image_to_tensor, mask_to_tensor, tensor_to_image
from sdpy.pipelines import Components, Event, Painted, Settings
from sdpy.zoo.files import find_files
from sdpy.zoo.variants import DEMO

SIZE = DEMO.sample_size
READER_FILE = "reader.pt"

NO_COLOUR = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": scenes.SUBJECTS,
    "colour": (NO_COLOUR, *scenes.COLOURS),
    "time": scenes.TIMES,
    "weather": scenes.WEATHERS,
}

# Numbers of endless sets of scenes (`demo_scenes.scene_at`); the model trains on number 0.
READER_SET, FRESH_SET, PROMPT_SET, EDIT_SET = 7001, 7002, 7003, 7004

Reading = dict[str, str]
"""A value for each of `ATTRIBUTES`."""


def attributes(scene: Scene) -> Reading:
    """What a reader should say about a picture of the scene."""
    return {name: getattr(scene, name) or NO_COLOUR for name in ATTRIBUTES}


# --- the reader -----------------------------------------------------------------------------------


class Reader(nn.Module):
    """A convolutional classifier with one answer for each of `ATTRIBUTES`."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 32, 2), (32, 64, 1), (64, 96, 2), (96, 96, 1), (96, 192, 2), (192, 192, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
                for before, after, stride in widths
            )
        )
        self.sizes = [len(values) for values in ATTRIBUTES.values()]
        self.head = nn.Linear(2 * 192, sum(self.sizes))

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Reduced pictures (B, 3, H, W) in [-1, 1] to logits, (B, values) for each attribute."""
        x = self.layers(pictures)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.head(pooled).split(self.sizes, dim=1)


def train_reader(run: Path, renders: int, epochs: int = 4, batch: int = 64) -> Reader:
    """Train a reader on pictures of its own, disturbed in another way each time, and save it."""
    torch.manual_seed(READER_SET)
    drawn = [scenes.scene_at(i, READER_SET, None) for i in range(renders)]
    pictures = torch.empty(renders, 3, SIZE // 2, SIZE // 2, dtype=torch.half)
    for i, scene in enumerate(drawn, start=1):
        pictures[i - 1] = reduce(render(scene))[0]
        if i % 2000 == 0:
            tell(f"reader: {i} of {renders} pictures drawn")
    expected = torch.tensor(
        [[v.index(attributes(scene)[n]) for n, v in ATTRIBUTES.items()] for scene in drawn]
    )
    reader = Reader().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    batches = [part for _ in range(epochs) for part in torch.randperm(renders).split(batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=len(batches))
    for step, index in enumerate(batches, start=1):
        disturbed = disturb(pictures[index].float())
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(disturbed.contiguous(memory_format=torch.channels_last))
        answers = zip(logits, expected[index].unbind(dim=1), strict=True)
        loss = torch.stack([F.cross_entropy(got.float(), want) for got, want in answers]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == len(batches):
            tell(f"reader: step {step} of {len(batches)}, loss {loss.item():.3f}")
    torch.save(reader.state_dict(), run / READER_FILE)
    return reader.eval()


def reduce(picture: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at half the size, at which the reader sees them."""
    return F.avg_pool2d(picture, 2)


def disturb(pictures: Tensor) -> Tensor:
    """Pictures as a painter or an autoencoder may leave them: soft, noisy, blotchy, off in colour.

    Each picture (of B, 3, H, W) gets its own amount of everything; half of them are mirrored.
    """
    count, _, height, width = pictures.shape

    def amount(most: float, channels: int = 1) -> Tensor:
        return most * torch.rand(count, channels, 1, 1)

    pictures = torch.stack([through_jpeg(p) if torch.rand(()) < 0.25 else p for p in pictures])
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = pictures.lerp(blurred, amount(0.8))
    blotches = F.interpolate(torch.randn(count, 3, 8, 8), size=(height, width), mode="bilinear")
    pictures = pictures + amount(0.15) * blotches
    pictures = pictures + amount(0.10) * torch.randn_like(pictures)
    pictures = pictures * (0.92 + amount(0.16, 3)) + amount(0.16, 3) - 0.08
    mirrored = torch.rand(count, 1, 1, 1) < 0.5
    return torch.where(mirrored, pictures.flip(-1), pictures).clamp(-1, 1)


def through_jpeg(picture: Tensor) -> Tensor:
    """A picture (3, H, W) as low-quality JPEG gives it back."""
    buffer = io.BytesIO()
    tensor_to_image(picture).save(buffer, "JPEG", quality=int(torch.randint(25, 75, ())))
    return image_to_tensor(Image.open(buffer))[0]


def load_reader(run: Path) -> Reader:
    """The reader that was trained in the folder."""
    return open_reader(run / READER_FILE)


def open_reader(file: Path) -> Reader:
    """The trained reader in a file."""
    reader = Reader()
    reader.load_state_dict(torch.load(file, weights_only=True))
    return reader.to(memory_format=torch.channels_last).eval()


@torch.inference_mode()
def read(reader: Reader, pictures: Sequence[Tensor]) -> list[Reading]:
    """What the reader sees in pictures, each (1, 3, H, W) in [-1, 1]."""
    readings: list[Reading] = []
    for start in range(0, len(pictures), 64):
        logits = reader(reduce(torch.cat(list(pictures[start : start + 64])).clamp(-1, 1)))
        best = zip(*(answer.argmax(dim=1).tolist() for answer in logits), strict=True)
        for indices in best:
            named = zip(ATTRIBUTES.items(), indices, strict=True)
            readings.append({name: values[i] for (name, values), i in named})
    return readings


# --- pictures -------------------------------------------------------------------------------------


def render(scene: Scene) -> Tensor:
    """The scene drawn, (1, 3, SIZE, SIZE) in [-1, 1]."""
    return image_to_tensor(Image.fromarray(scenes.draw(scene, SIZE)))


def reconstruct(components: Components, pictures: Iterable[Tensor]) -> list[Tensor]:
    """Pictures as the autoencoder gives them back."""
    with components.vae() as vae, torch.inference_mode():
        return [vae.decode(vae.encode(picture).mean) for picture in pictures]


def painted(events: Iterator[Event]) -> Tensor:
    """The one picture that a pipeline paints."""
    (picture,) = (event.picture for event in events if isinstance(event, Painted))
    return picture


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its noise, and the scene that it asks for."""

    scene: Scene
    prompt: str
    seed: int


def withheld_tasks(count: int) -> list[Task]:
    """Tasks from the combinations withheld from training, each as often as the others.

    Every occurrence has its own words, naming all attributes.
    """
    withheld = [scene for scene in scenes.combinations() if scenes.is_held_out(scene)]
    order = np.random.default_rng(PROMPT_SET).permutation(len(withheld))
    tasks = []
    for i, place in zip(range(count), itertools.cycle(order), strict=False):
        rng = np.random.default_rng([PROMPT_SET, i])
        scene = dataclasses.replace(withheld[place], seed=int(rng.integers(2**31)))
        tasks.append(Task(scene, scenes.caption(scene, rng, complete=True), seed=i))
    return tasks


def paint(
    components: Components, tasks: Sequence[Task], steps: int = 30, guidance: float | None = None
) -> list[Tensor]:
    """Text to picture for every task."""
    started = time.monotonic()
    pictures = []
    for i, task in enumerate(tasks, start=1):
        settings = Settings(task.prompt, steps=steps, guidance_scale=guidance, seed=task.seed)
        pictures.append(painted(pipelines.generate(components, settings, width=SIZE, height=SIZE)))
        if i % 20 == 0 or i == len(tasks):
            seconds = (time.monotonic() - started) / i
            tell(f"{i} of {len(tasks)} at {steps} steps, {seconds:.2f} s a picture")
    return pictures


def labelled_sheet(
    path: Path, pictures: Sequence[Tensor], labels: Sequence[str], columns: int
) -> None:
    """Write pictures in rows, each over its label, which may have several lines."""
    lines = max(label.count("\n") + 1 for label in labels)
    width, height = SIZE + 4, SIZE + 4 + 11 * lines
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * width, i // columns * height
        sheet.paste(tensor_to_image(picture), (x + 2, y + 2))
        draw.multiline_text((x + 2, y + SIZE + 2), label, fill="black", spacing=0, font_size=10)
    sheet.save(path)


# --- scores ---------------------------------------------------------------------------------------


def score(asked: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, float]:
    """Percentages of pictures that show each attribute as asked, and all of them.

    The colour counts where one was asked for: in the others there is none to get wrong.
    """
    pairs = [(attributes(scene), got) for scene, got in zip(asked, readings, strict=True)]
    scores = {}
    for name in ATTRIBUTES:
        counted = [(want, got) for want, got in pairs if want[name] != NO_COLOUR]
        scores[name] = percent(want[name] == got[name] for want, got in counted)
    scores["all"] = percent(not mistakes(want, got) for want, got in pairs)
    return scores


def mistakes(want: Reading, got: Reading) -> list[str]:
    """The attributes that differ; the colour only where one was asked for."""
    return [n for n in ATTRIBUTES if want[n] != got[n] and want[n] != NO_COLOUR]


def percent(hits: Iterable[bool]) -> float:
    """Share of hits in percent, NaN of nothing."""
    values = list(hits)
    return 100 * sum(values) / len(values) if values else math.nan


def print_table(first: str, rows: dict[str, dict[str, float]]) -> None:
    """Print rows of percentages as a Markdown table, the first column headed ``first``."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {first} | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in columns) + " |")
    sys.stdout.flush()


def tell(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)


# --- the parts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how much; the command line's options."""

    run: Path
    files: Path | None
    state: bool
    renders: int
    prompts: int
    setting_prompts: int
    edits: int
    strength: float

    @cached_property
    def components(self) -> Components:
        """The models: the bundled ones, those in a folder, or the state of the run's training."""
        folder = self.files
        if self.state:
            folder = self.run / "state"
            export_state(self.run, folder)
        variant = DEMO if folder is None else dataclasses.replace(DEMO, bundled=folder)
        assert variant.bundled is not None
        keep = frozenset({"text_encoder", "unet", "vae"})
        return Components(variant, find_files(variant, variant.bundled), keep=keep)


def export_state(run: Path, folder: Path) -> None:
    """Write the averaged weights of an unfinished training as files."""
    options = train_demo.Options(run=run)
    folder.mkdir(exist_ok=True)
    denoiser = train_demo.load_denoiser(options)
    write_checkpoint(folder / DEMO.files.of("unet")[0], denoiser["unet"].state_dict())
    write_checkpoint(folder / DEMO.files.of("text_encoder")[0], denoiser["text"].state_dict())
    vae = train_demo.load_autoencoder(options)
    write_checkpoint(folder / DEMO.files.of("vae")[0], vae.state_dict())
    (folder / train_demo.MERGES_FILE).write_text((run / train_demo.MERGES_FILE).read_text())


def evaluate_reader(evaluation: Evaluation) -> dict:
    """Train the reader, and read renders that it has not seen."""
    reader = train_reader(evaluation.run, evaluation.renders)
    fresh = [scenes.scene_at(i, FRESH_SET, None) for i in range(2000)]
    rows = {"fresh renders (2000)": score(fresh, read(reader, [render(s) for s in fresh]))}
    print_table("pictures, % read as they are", rows)
    return rows


def evaluate_adherence(evaluation: Evaluation) -> dict:
    """Paint withheld combinations at the defaults and read them back."""
    reader, components = load_reader(evaluation.run), evaluation.components
    tasks = withheld_tasks(evaluation.prompts)
    asked = [task.scene for task in tasks]
    drawn = [render(scene) for scene in asked]
    pictures = paint(components, tasks)
    readings = read(reader, pictures)
    rows = {
        "renders": score(asked, read(reader, drawn)),
        "reconstructions": score(asked, read(reader, reconstruct(components, drawn))),
        "painted": score(asked, readings),
    }
    print_table(f"pictures ({len(tasks)}), % as asked", rows)

    missed: collections.Counter[str] = collections.Counter()
    failures = []
    for task, picture, got in zip(tasks, pictures, readings, strict=True):
        want = attributes(task.scene)
        wrong = [f"{want[name]} read as {got[name]}" for name in mistakes(want, got)]
        missed.update(wrong)
        if wrong:
            failures.append((picture, task, wrong))
    if failures:
        labels = ["\n".join([*wrapped(task.prompt), *wrong]) for _, task, wrong in failures]
        pictures = [picture for picture, _, _ in failures]
        labelled_sheet(evaluation.run / "failures.png", pictures, labels, columns=8)
    print("\nMost frequent: " + "; ".join(f"{what} ({n})" for what, n in missed.most_common(8)))
    return {
        "rows": rows,
        "by value": score_by_value(asked, readings),
        "failures": [
            {"prompt": task.prompt, "seed": task.seed, "wrong": wrong}
            for _, task, wrong in failures
        ],
    }


def score_by_value(asked: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, float]:
    """Percentage of pictures that show a value among those that were to show it."""
    hits: dict[str, list[bool]] = collections.defaultdict(list)
    for scene, got in zip(asked, readings, strict=True):
        for name, value in attributes(scene).items():
            hits[value].append(got[name] == value)
    return {value: percent(hit) for value, hit in sorted(hits.items())}


def evaluate_settings(evaluation: Evaluation) -> dict:
    """Adherence at other numbers of steps and guidance scales."""
    reader = load_reader(evaluation.run)
    tasks = withheld_tasks(evaluation.setting_prompts)
    asked = [task.scene for task in tasks]
    default = DEMO.guidance_scale
    scales = (1.0, 2.0, default, 6.0, 8.0)
    rows = {}
    for steps, scale in [(n, default) for n in (10, 20, 30, 50)] + [(30, g) for g in scales]:
        name = f"{steps} steps, guidance {scale:g}"
        if name not in rows:
            pictures = paint(evaluation.components, tasks, steps, scale)
            rows[name] = score(asked, read(reader, pictures))
    print_table(f"painted ({len(tasks)}), % as asked", rows)
    return rows


def evaluate_cost(evaluation: Evaluation) -> dict:
    """Size of the files, and the time of a whole process."""
    files = evaluation.components.files
    megabytes = (
        sum(path.stat().st_size for path in (*files.weights.values(), files.vocabulary)) / 1e6
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdpy", "generate", "lighthouse at dark"]
        command += ["--model", "demo", "--quiet", "--output", f"{folder}/picture.png"]
        for name, path in files.weights.items():
            command += [str(COMPONENTS[name].option), path]
        command += ["--vocab-file", files.vocabulary]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
    print(f"\nFiles: {megabytes:.1f} MB. One picture, process start included: {seconds:.1f} s.")
    return {"megabytes": megabytes, "seconds": seconds}


def paint_prompts(evaluation: Evaluation, seeds: int = 6) -> dict:
    """The trainer's prompts by seeds, to look at."""
    prompts = [prompt for prompt in train_demo.SHEET_PROMPTS for _ in range(seeds)]
    anything = next(scenes.combinations())
    tasks = [Task(anything, prompt, seed=32 + i % seeds) for i, prompt in enumerate(prompts)]
    labels = ["\n".join(wrapped(prompt)) for prompt in prompts]
    path = evaluation.run / "prompts.png"
    labelled_sheet(path, paint(evaluation.components, tasks), labels, columns=2 * seeds)
    print(f"\nSheet: {path}")
    return {"sheet": str(path)}


def wrapped(text: str, width: int = 25) -> list[str]:
    """A text in lines that fit under a picture."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# --- edits ----------------------------------------------------------------------------------------

GROUNDS = (("lighthouse", "boat"), ("house", "castle", "windmill", "robot"))
"""Subjects that can stand in each other's place: those by the sea, and those on land that leave
nothing of themselves in the rest of the picture, as a far row of trees would."""


def edited(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """The scene with another value of one attribute, possible in the same place."""

    def another(values: Sequence[str], than: str | None) -> str:
        others = [value for value in values if value != than]
        return others[int(rng.integers(len(others)))]

    if attribute != "subject":
        values = scenes.COLOURS if attribute == "colour" else ATTRIBUTES[attribute]
        value = another(values, getattr(scene, attribute))
        return dataclasses.replace(scene, **{attribute: value})
    (ground,) = (ground for ground in GROUNDS if scene.subject in ground)
    subject = another(ground, scene.subject)
    colour = scene.colour
    if subject in scenes.PLAIN_SUBJECTS:
        colour = None
    elif colour is None:
        colour = another(scenes.COLOURS, None)
    return dataclasses.replace(scene, subject=subject, colour=colour)


def edit_scenes(attribute: str, count: int, subjects: Sequence[str]) -> list[tuple[Scene, Scene]]:
    """Pairs of a scene to draw and the scene to make of it."""
    drawn = (scenes.scene_at(i, EDIT_SET, None) for i in itertools.count())
    suitable = (
        scene
        for scene in drawn
        if scene.subject in subjects and not (attribute == "colour" and scene.colour is None)
    )
    rng = np.random.default_rng([EDIT_SET, len(attribute)])
    chosen = itertools.islice(suitable, count)
    return [(scene, edited(scene, attribute, rng)) for scene in chosen]


def subject_box(scene: Scene) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the subject with some air around it, in pixels."""
    frames: list[scenes.Frame] = []
    staging = dataclasses.replace(
        scenes.STAGINGS[scene.subject], paint=lambda _, frame, __: frames.append(frame)
    )
    with mock.patch.dict(scenes.STAGINGS, {scene.subject: staging}):
        scenes.draw(scene, 16)
    (frame,) = frames
    half = 0.62 * frame.height
    corners = (frame.x - half, frame.y - 1.1 * frame.height, frame.x + half, frame.y + 0.1)
    left, top, right, bottom = (round(SIZE * min(max(corner, 0), 1)) for corner in corners)
    return left, top, right, bottom


def evaluate_edits(evaluation: Evaluation) -> dict:
    """Change one attribute of renders and read back whether it, and nothing else, changed."""
    reader = load_reader(evaluation.run)
    strength = evaluation.strength
    by_img2img = f"img2img, strength {strength:g}"
    land_and_sea = [subject for ground in GROUNDS for subject in ground]

    def with_img2img(scene: Scene, settings: Settings) -> Tensor:
        picture = render(scene)
        return painted(
            pipelines.img2img(evaluation.components, settings, picture, strength=strength)
        )

    def with_inpaint(scene: Scene, settings: Settings) -> Tensor:
        picture = tensor_to_image(render(scene))
        mask = Image.new("L", picture.size, 0)
        mask.paste(255, subject_box(scene))
        inside = painted(
            pipelines.inpaint(
                evaluation.components, settings, image_to_tensor(picture), mask_to_tensor(mask)
            )
        )
        return image_to_tensor(composite(picture, tensor_to_image(inside), mask))

    edits: list[tuple[str, str, Sequence[str], Callable[[Scene, Settings], Tensor]]] = [
        (by_img2img, "time", scenes.SUBJECTS, with_img2img),
        (by_img2img, "weather", scenes.SUBJECTS, with_img2img),
        (by_img2img, "colour", scenes.COLOURED_SUBJECTS, with_img2img),
        ("inpaint", "subject", land_and_sea, with_inpaint),
        ("inpaint", "colour", scenes.COLOURED_SUBJECTS, with_inpaint),
    ]
    rows = {}
    sheet: list[tuple[Tensor, str]] = []
    for how, attribute, subjects, change in edits:
        pairs = edit_scenes(attribute, evaluation.edits, subjects)
        pictures = []
        for i, (scene, target) in enumerate(pairs):
            prompt = scenes.caption(target, np.random.default_rng([EDIT_SET, i]), complete=True)
            pictures.append(change(scene, Settings(prompt, seed=i)))
            if i < 8:
                sheet.append((render(scene), f"{how}\n{attribute}"))
                sheet.append((pictures[-1], "\n".join(wrapped(prompt)[:2])))
        tell(f"{len(pictures)} edits: {how}, {attribute}")
        targets = [target for _, target in pairs]
        rows[f"{how}: {attribute}"] = score_edits(targets, read(reader, pictures), attribute)
    print_table(f"edits ({evaluation.edits} each), % read back", rows)
    labelled_sheet(evaluation.run / "edits.png", *zip(*sheet, strict=True), columns=8)
    return rows


def score_edits(
    targets: Sequence[Scene], readings: Sequence[Reading], attribute: str
) -> dict[str, float]:
    """Percentages of pictures where the attribute is as asked, where the others are, and both."""
    wrong = [mistakes(attributes(t), got) for t, got in zip(targets, readings, strict=True)]
    return {
        "changed as asked": percent(attribute not in names for names in wrong),
        "rest stayed": percent(not set(names) - {attribute} for names in wrong),
        "both": percent(not names for names in wrong),
    }


# --- command line ---------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Evaluation], dict]] = {
    "reader": evaluate_reader,
    "adherence": evaluate_adherence,
    "settings": evaluate_settings,
    "edits": evaluate_edits,
    "cost": evaluate_cost,
    "sheet": paint_prompts,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", choices=["all", *PARTS], nargs="+")
    parser.add_argument("--run", type=Path, required=True, help="folder of the reader and sheets")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    source.add_argument("--state", action="store_true", help="measure the training state in RUN")
    parser.add_argument("--renders", type=int, default=16_000, help="that the reader learns from")
    parser.add_argument("--prompts", type=int, default=216, help="of the table of adherence")
    parser.add_argument("--setting-prompts", type=int, default=54, help="for each setting")
    parser.add_argument("--edits", type=int, default=40, help="of each kind")
    parser.add_argument("--strength", type=float, default=0.8, help="of img2img")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    parser.add_argument("--threads", type=int, help="of torch")
    options = vars(parser.parse_args(arguments))

    parts, target, threads = options.pop("parts"), options.pop("json"), options.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    evaluation = Evaluation(**options)
    results = {}
    for part in PARTS if "all" in parts else parts:
        results[part] = PARTS[part](evaluation)
        if target is not None:
            target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
