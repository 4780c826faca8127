"""A small classifier that judges images by what they show: subject, colour, time and weather."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from scripts.demo.recipes import Recipe
from scripts.demo.scene_sets import AnyScene, Attributes
from scripts.demo.training.trainer import channels_last
from scripts.reports import tell
from sdpy.files import atomic_write
from sdpy.images.tensors import image_to_tensor, tensor_to_image

CLASSIFIER_FILE = "classifier.pt"

SIDE = 64
"""Pixels a side of the images as the classifier sees them."""

CLASSIFIER_SET = 7001
"""Number of the set of scenes (`scripts.demo.scenes.scene_at`) that it is trained on."""


class AttributeClassifier(nn.Module):
    """A convolutional classifier with one answer for each attribute.

    Args:
        values: the attributes of a set of scenes, and the values of each.
    """

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.values = values
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
        self.head = nn.Linear(2 * 192, sum(self.sizes))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Downsampled images (B, 3, H, W) in [-1, 1] to logits, (B, values) for each attribute."""
        x = self.layers(images)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.head(pooled).split(self.sizes, dim=1)


def train_classifier(
    file: Path, renders: int, recipe: Recipe, epochs: int = 4, batch: int = 64
) -> AttributeClassifier:
    """Train a classifier on scenes of its own, augmented anew each time, and save it.

    Args:
        file: to save it to.
        renders: number of scenes.
        recipe: which scenes they are, and how large.
        epochs: times that each is seen.
        batch: images of a training step.
    """
    torch.manual_seed(CLASSIFIER_SET)
    drawn = [recipe.scenes.scene_at(i, CLASSIFIER_SET, None) for i in range(renders)]
    images = torch.empty(renders, 3, SIDE, SIDE, dtype=torch.half)
    for i, scene in enumerate(drawn, start=1):
        images[i - 1] = downsample(render(scene, recipe))[0]
        if i % 2000 == 0:
            tell(f"classifier: {i} of {renders} images drawn")
    values = recipe.scenes.values
    expected = torch.tensor(
        [[v.index(scene.attributes[n]) for n, v in values.items()] for scene in drawn]
    )
    classifier = channels_last(AttributeClassifier(values))
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    batches = [part for _ in range(epochs) for part in torch.randperm(renders).split(batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=len(batches))
    for step, index in enumerate(batches, start=1):
        augmented = augment(images[index].float())
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(augmented.contiguous(memory_format=torch.channels_last))
        answers = zip(logits, expected[index].unbind(dim=1), strict=True)
        loss = torch.stack([F.cross_entropy(got.float(), want) for got, want in answers]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == len(batches):
            tell(f"classifier: step {step} of {len(batches)}, loss {loss.item():.3f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as opened:
        torch.save(classifier.state_dict(), opened)
    return classifier.eval()


def downsample(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) at the size at which the classifier sees them, if they are larger."""
    return F.avg_pool2d(images, max(images.shape[-1] // SIDE, 1))


def augment(images: Tensor) -> Tensor:
    """Images as a diffusion model or an autoencoder may leave them: soft, noisy, off in colour.

    Each image of (B, 3, H, W) gets its own amount of everything; half of them are mirrored.
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
    mirrored = torch.rand(count, 1, 1, 1) < 0.5
    return torch.where(mirrored, images.flip(-1), images).clamp(-1, 1)


def through_jpeg(image: Tensor) -> Tensor:
    """An image (3, H, W) as low-quality JPEG gives it back."""
    buffer = io.BytesIO()
    tensor_to_image(image).save(buffer, "JPEG", quality=int(torch.randint(25, 75, ())))
    return image_to_tensor(Image.open(buffer))[0]


def load_classifier(file: Path, recipe: Recipe) -> AttributeClassifier:
    """The trained classifier in a file."""
    classifier = AttributeClassifier(recipe.scenes.values)
    classifier.load_state_dict(torch.load(file, weights_only=True))
    return channels_last(classifier).eval()


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
        logits = classifier(downsample(torch.cat(list(images[start : start + 64])).clamp(-1, 1)))
        best = zip(*(answer.argmax(dim=1).tolist() for answer in logits), strict=True)
        for indices in best:
            named = zip(classifier.values.items(), indices, strict=True)
            seen.append({name: values[i] for (name, values), i in named})
    return seen


def render(scene: AnyScene, recipe: Recipe, size: int | None = None) -> Tensor:
    """The scene drawn, (1, 3, size, size) in [-1, 1]; at the recipe's size if none is given."""
    pixels = recipe.scenes.draw(scene, recipe.size if size is None else size)
    return image_to_tensor(Image.fromarray(pixels))
