"""A small classifier that judges images by what they show: subject, colour, time, weather, ..."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from scripts.demo.recipes import Recipe
from scripts.demo.scene_sets import AnyScene, Attributes
from scripts.demo.training.data import to_tensor
from scripts.demo.training.renderer import Renderer, RenderJob
from scripts.demo.training.trainer import channels_last
from scripts.reports import tell
from sdpy.files import atomic_write
from sdpy.images.tensors import image_to_tensor, tensor_to_image

CLASSIFIER_FILE = "classifier.pt"

SIDE = 64
"""Pixels a side of the images as the classifier sees them, unless its scenes need more."""

STRIPS = 4
"""Vertical strips that are looked at one by one where it matters what stands left and right."""

CLASSIFIER_SET = 7001
"""Number of the set of scenes (`scripts.demo.scenes.scene_at`) that it is trained on."""


class AttributeClassifier(nn.Module):
    """A convolutional classifier with one answer for each attribute.

    Args:
        values: the attributes of a set of scenes, and the values of each.
        side: pixels a side of the images as it sees them.

    Attributes:
        strips: in which features are pooled: one, or `STRIPS` if things have a place.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], side: int = SIDE) -> None:
        super().__init__()
        self.values, self.side = values, side
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
        self.sizes = [len(names) for names in values.values()]
        self.strips = STRIPS if "place" in values else 1
        self.head = nn.Linear(2 * 192 * self.strips, sum(self.sizes))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Downsampled images (B, 3, H, W) in [-1, 1] to logits, (B, values) for each attribute."""
        x = self.layers(images).unflatten(3, (self.strips, -1))  # (B, C, h, strips, w)
        pooled = torch.cat([x.mean(dim=(2, 4)), x.amax(dim=(2, 4))], dim=1).flatten(1)
        return self.head(pooled).split(self.sizes, dim=1)


def make_classifier(recipe: Recipe) -> AttributeClassifier:
    """A classifier that has learned nothing, which sees half of what the recipe's images show."""
    return channels_last(AttributeClassifier(recipe.scenes.values, max(recipe.size // 2, SIDE)))


def train_classifier(
    file: Path, renders: int, recipe: Recipe, epochs: int | None = None, batch: int = 64
) -> AttributeClassifier:
    """Train a classifier on scenes of its own, augmented anew each time, and save it.

    Args:
        file: to save it to.
        renders: number of scenes.
        recipe: which scenes they are, and how large.
        epochs: times that each is seen; None for as many as the recipe says.
        batch: images of a training step.
    """
    torch.manual_seed(CLASSIFIER_SET)
    drawn = [recipe.scenes.scene_at(i, CLASSIFIER_SET, None) for i in range(renders)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = make_classifier(recipe).to(device)
    images = draw_training_images(file.parent, renders, recipe, classifier.side)
    values = recipe.scenes.values
    expected = torch.tensor(
        [[v.index(scene.attributes[n]) for n, v in values.items()] for scene in drawn]
    )
    epochs = recipe.reader_epochs if epochs is None else epochs
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    batches = [part for _ in range(epochs) for part in torch.randperm(renders).split(batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=len(batches))
    for step, index in enumerate(batches, start=1):
        augmented = augment(images[index].float(), mirror="place" not in values)
        augmented = augmented.to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            logits = classifier(augmented)
        answers = zip(logits, expected[index].to(device).unbind(dim=1), strict=True)
        loss = torch.stack([F.cross_entropy(got.float(), want) for got, want in answers]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == len(batches):
            tell(f"classifier: step {step} of {len(batches)}, loss {loss.item():.3f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    classifier = classifier.cpu().eval()
    with atomic_write(file) as opened:
        torch.save(classifier.state_dict(), opened)
    return classifier


def draw_training_images(folder: Path, renders: int, recipe: Recipe, side: int) -> Tensor:
    """The classifier's scenes as it sees them, (renders, 3, side, side) float16.

    They are drawn into a file of the folder, by all cores, and go on from what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = RenderJob(
        scenes=recipe.scenes,
        seed=CLASSIFIER_SET,
        size=recipe.size,
        count=renders,
        versions=0,
        length=0,
        merges=Path(),
        vocab_size=0,
        images=folder / f"{CLASSIFIER_FILE}.{recipe.size}.raw",
        captions=folder / f"{CLASSIFIER_FILE}.none",
        held_out=None,
    )
    if job.drawn < renders:
        tell(f"classifier: drawing {renders} images")
        renderer = Renderer(job)
        renderer.wait(renders)
        renderer.stop()
    pixels = np.memmap(job.images, np.uint8, "c", shape=(renders, job.size, job.size, 3))
    parts = torch.from_numpy(pixels).split(512)
    seen = torch.cat([downsample(to_tensor(part), side).half() for part in parts])
    job.images.unlink()
    job.captions.unlink(missing_ok=True)
    return seen


def downsample(images: Tensor, side: int = SIDE) -> Tensor:
    """Images (B, 3, H, W) at the size at which a classifier sees them, if they are larger."""
    return F.avg_pool2d(images, max(images.shape[-1] // side, 1))


def augment(images: Tensor, mirror: bool = True) -> Tensor:
    """Images as a diffusion model or an autoencoder may leave them: soft, noisy, off in colour.

    Each image of (B, 3, H, W) gets its own amount of everything; half of them are mirrored, if
    ``mirror`` allows it: where it matters what stands on the left, it would make them untrue.
    """
    count, _, height, width = images.shape

    def amount(most: float, channels: int = 1) -> Tensor:
        return most * torch.rand(count, channels, 1, 1)

    images = torch.stack([through_jpeg(p) if torch.rand(()) < 0.25 else p for p in images])
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = images.lerp(blurred, amount(0.8))
    blotches = F.interpolate(torch.randn(count, 3, 8, 8), size=(height, width), mode="bilinear")
    images = images + amount(0.15) * blotches
    images = images + amount(0.10) * torch.randn_like(images)
    images = images * (0.92 + amount(0.16, 3)) + amount(0.16, 3) - 0.08
    mirrored = torch.rand(count, 1, 1, 1) < (0.5 if mirror else 0.0)
    return torch.where(mirrored, images.flip(-1), images).clamp(-1, 1)


def through_jpeg(image: Tensor) -> Tensor:
    """An image (3, H, W) as low-quality JPEG gives it back."""
    buffer = io.BytesIO()
    tensor_to_image(image).save(buffer, "JPEG", quality=int(torch.randint(25, 75, ())))
    return image_to_tensor(Image.open(buffer))[0]


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
