"""A small classifier that judges images by what they show: subject, colour, time, weather, ..."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from scripts.demo.recipes import Recipe
from scripts.demo.scene_sets import AnyScene, Attributes
from scripts.demo.scenes import Pixels
from scripts.demo.training.data import to_tensor
from scripts.demo.training.renderer import Renderer, RenderJob
from scripts.demo.training.trainer import channels_last
from scripts.reports import tell
from sdpy.files import atomic_write
from sdpy.images.tensors import image_to_tensor

CLASSIFIER_FILE = "classifier.pt"

SIDE = 64
"""Pixels a side of the images as the classifier sees them, unless its scenes need more."""

CLASSIFIER_SET = 7001
"""Number of the set of scenes (`scripts.demo.scenes.scene_at`) that it is trained on."""

PATCH = 4
"""Pixels a side that it takes together first."""

WIDTHS = (48, 96, 192)
"""Channels of its levels, each of half the side of the one before."""

HEADS = 4
"""Places that it looks at for each attribute."""

WORN_SHARE = 4
"""One of so many training images is as low-quality JPEG gives it back."""


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input, (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(channels, channels)
        self.conv2, self.norm2 = _convolution(channels, channels)
        nn.init.zeros_(self.norm2.weight)  # it begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def _convolution(before: int, after: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(after)


class AttributeClassifier(nn.Module):
    """A convolutional classifier with one answer for each attribute.

    For each attribute it looks where it learned to look: which thing stands on the left cannot be
    told from what is to be seen somewhere.

    Args:
        values: the attributes of a set of scenes, and the values of each.
        side: pixels a side of the images as it sees them.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], side: int = SIDE) -> None:
        super().__init__()
        self.values, self.side = values, side
        layers: list[nn.Module] = [nn.PixelUnshuffle(PATCH)]
        before = 3 * PATCH**2
        for level, width in enumerate(WIDTHS):
            layers += [*_convolution(before, width, 1 if level == 0 else 2), nn.ReLU()]
            layers += [ResidualBlock(width), ResidualBlock(width)]
            before = width
        self.layers = nn.Sequential(*layers)
        grid = side // PATCH // 2 ** (len(WIDTHS) - 1)
        self.places = nn.Parameter(0.02 * torch.randn(1, before, grid, grid))
        self.norm = nn.LayerNorm(before)
        self.queries = nn.Parameter(before**-0.5 * torch.randn(len(values), before))
        self.to_key, self.to_value = nn.Linear(before, before), nn.Linear(before, before)
        self.answers = nn.ModuleList(nn.Linear(2 * before, len(names)) for names in values.values())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Downsampled images (B, 3, H, W) in [-1, 1] to logits, (B, values) for each attribute."""
        x = self.layers(images)
        places = F.interpolate(self.places, size=x.shape[-2:], mode="bilinear")  # of other sides
        x = self.norm((x + places).flatten(2).transpose(1, 2))  # (B, places, C)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(-3, -2)
            for part in (self.queries, self.to_key(x), self.to_value(x))
        )
        weights = (query @ key.transpose(-1, -2)).float().softmax(-1).to(value.dtype)
        found = (weights @ value).transpose(1, 2).flatten(2)  # (B, attributes, C)
        overall = x.mean(dim=1)
        return tuple(
            answer(torch.cat([found[:, i], overall], dim=1))
            for i, answer in enumerate(self.answers)
        )


def make_classifier(recipe: Recipe) -> AttributeClassifier:
    """A classifier that has learned nothing, which sees half of what the recipe's images show."""
    side = min(recipe.size, max(recipe.size // 2, SIDE))
    return channels_last(AttributeClassifier(recipe.scenes.values, side))


def train_classifier(
    file: Path, renders: int, recipe: Recipe, epochs: int | None = None, batch: int = 64
) -> AttributeClassifier:
    """Train a classifier on scenes of its own, augmented anew each time, and save it.

    Half of them are seen mirrored each time, and are then to be read as `SceneSet.mirrored` says.

    Args:
        file: to save it to.
        renders: number of scenes.
        recipe: which scenes they are, and how large.
        epochs: times that each is seen; None for as many as the recipe says.
        batch: images of a training step.
    """
    torch.manual_seed(CLASSIFIER_SET)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = make_classifier(recipe).to(device)
    pixels = draw_training_images(file.parent, renders, recipe, classifier.side).to(device)
    answers = expected_answers(recipe, renders).to(device)
    epochs = recipe.reader_epochs if epochs is None else epochs
    optimizer = torch.optim.AdamW(classifier.parameters(), betas=(0.9, 0.99), weight_decay=0.02)
    batches = [part for _ in range(epochs) for part in torch.randperm(renders).split(batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=len(batches), pct_start=0.15
    )
    for step, numbers in enumerate(batches, start=1):
        index = numbers.to(device)
        images, expected = to_tensor(pixels[index], device), answers[0, index]
        mirrored = torch.rand(len(index), device=device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        expected = torch.where(mirrored[:, None], answers[1, index], expected)
        images = augment(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            logits = classifier(images)
        told = zip(logits, expected.unbind(dim=1), strict=True)
        loss = torch.stack([F.cross_entropy(got.float(), want) for got, want in told]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == len(batches):
            tell(f"classifier: step {step} of {len(batches)}, loss {loss.item():.3f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    classifier = classifier.cpu().eval()
    with atomic_write(file) as opened:
        torch.save(classifier.state_dict(), opened)
    return classifier


def expected_answers(recipe: Recipe, renders: int) -> Tensor:
    """Numbers of the values that the scenes show as they are and mirrored, (2, renders, names)."""
    values = recipe.scenes.values
    drawn = [recipe.scenes.scene_at(i, CLASSIFIER_SET, None).attributes for i in range(renders)]
    return torch.tensor(
        [
            [[names.index(shown[name]) for name, names in values.items()] for shown in seen]
            for seen in (drawn, [recipe.scenes.mirrored(shown) for shown in drawn])
        ]
    )


def draw_training_images(folder: Path, renders: int, recipe: Recipe, side: int) -> Tensor:
    """The classifier's scenes as it sees them, (renders, side, side, 3) uint8.

    They are drawn into a file of the folder, by all cores, and go on from what is there. Drawn at
    this size at once, they differ from reduced ones by less than a grey level on average, and take
    a fourth of the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = RenderJob(
        scenes=recipe.scenes,
        seed=CLASSIFIER_SET,
        size=side,
        count=renders,
        versions=0,
        length=0,
        merges=Path(),
        vocab_size=0,
        images=folder / f"{CLASSIFIER_FILE}.{side}.raw",
        captions=folder / f"{CLASSIFIER_FILE}.none",
        held_out=None,
    )
    if job.drawn < renders:
        tell(f"classifier: drawing {renders} images")
        renderer = Renderer(job)
        renderer.wait(renders)
        renderer.stop()
    pixels = np.fromfile(job.images, np.uint8).reshape(-1, side, side, 3)[:renders]
    with ThreadPoolExecutor() as pool:
        worn = range(0, renders, WORN_SHARE)
        for i, image in zip(worn, pool.map(through_jpeg, pixels[::WORN_SHARE], worn), strict=True):
            pixels[i] = image
    job.images.unlink()
    job.captions.unlink(missing_ok=True)
    return torch.from_numpy(pixels)


def downsample(images: Tensor, side: int = SIDE) -> Tensor:
    """Images (B, 3, H, W) at the size at which a classifier sees them, if they are larger."""
    return F.avg_pool2d(images, max(images.shape[-1] // side, 1))


def augment(images: Tensor) -> Tensor:
    """Images as a diffusion model or an autoencoder may leave them: soft, noisy, off in colour.

    Each image of (B, 3, H, W) gets its own amount of everything.
    """
    count, _, height, width = images.shape
    device = images.device

    def amount(most: float, channels: int = 1) -> Tensor:
        return most * torch.rand(count, channels, 1, 1, device=device)

    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = images.lerp(blurred, amount(0.8))
    coarse = torch.randn(count, 3, 8, 8, device=device)
    blotches = F.interpolate(coarse, size=(height, width), mode="bilinear")
    images = images + amount(0.15) * blotches
    images = images + amount(0.10) * torch.randn_like(images)
    images = images * (0.92 + amount(0.16, 3)) + amount(0.16, 3) - 0.08
    return images.clamp(-1, 1)


def through_jpeg(pixels: Pixels, seed: int) -> Pixels:
    """Pixels (H, W, 3) uint8 as JPEG of a low quality, which the seed decides, gives them back."""
    buffer = io.BytesIO()
    quality = int(np.random.default_rng(seed).integers(25, 75))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def load_classifier(file: Path, recipe: Recipe) -> AttributeClassifier:
    """The trained classifier in a file."""
    classifier = make_classifier(recipe)
    classifier.load_state_dict(torch.load(file, weights_only=True))
    return classifier.eval()


def find_classifier(file: Path, renders: int, recipe: Recipe) -> AttributeClassifier:
    """The classifier in the file, or one that is trained first and left there."""
    if not file.exists():
        train_classifier(file, renders, recipe)
    return load_classifier(file, recipe)


@torch.inference_mode()
def classify(classifier: AttributeClassifier, images: Sequence[Tensor]) -> list[Attributes]:
    """What the classifier sees in images, each (1, 3, H, W) in [-1, 1]."""
    seen: list[Attributes] = []
    for start in range(0, len(images), 64):
        seen_now = torch.cat(list(images[start : start + 64])).clamp(-1, 1)
        logits = classifier(downsample(seen_now, classifier.side))
        best = zip(*(answer.argmax(dim=1).tolist() for answer in logits), strict=True)
        for indices in best:
            named = zip(classifier.values.items(), indices, strict=True)
            seen.append({name: values[i] for (name, values), i in named})
    return seen


def render(scene: AnyScene, recipe: Recipe, size: int | None = None) -> Tensor:
    """The scene drawn, (1, 3, size, size) in [-1, 1]; at the recipe's size if none is given."""
    pixels = recipe.scenes.draw(scene, recipe.size if size is None else size)
    return image_to_tensor(Image.fromarray(pixels))
