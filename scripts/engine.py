"""The demo model as the scripts use it: everything that they ask of sdpy's engine is here.

What stands beside this are benchmarks of single phases (`scripts.bench.workers`), of parts of a
UNet (`scripts.bench.measure_approximations`), and of many images (`scripts.bench.batches`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpy.pipelines.denoise import denoise
from sdpy.pipelines.encoding import encode_plans
from sdpy.pipelines.events import ImageDecoded
from sdpy.pipelines.generate import generate
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.plan import plan_request, plan_schedule
from sdpy.pipelines.request import Request
from sdpy.pipelines.vae import decode, encode
from sdpy.runtime.devices import place, seeded_generator
from sdpy.runtime.fallbacks import finish
from sdpy.runtime.session import Session
from sdpy.schedulers import Scheduler
from sdpy.zoo.files import find_files
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import DEMO, VOCABULARY, ModelVariant

DEFAULT_SCHEDULER = DEMO.scheduler
"""The scheduler of a request that names none."""


@dataclass(frozen=True)
class DemoModel:
    """The demo model, whose components stay loaded once they are.

    Images are float32 (1, 3, H, W) in [-1, 1]; latents (1, C, h, w).

    Attributes:
        session: that owns the models.
    """

    session: Session

    @classmethod
    def open(
        cls,
        folder: Path | None = None,
        *,
        variant: ModelVariant | None = None,
        files: Mapping[str, Path] | None = None,
        device: str | None = None,
    ) -> DemoModel:
        """Open the bundled model.

        Args:
            folder: of other weights than the bundled ones, under the same names.
            variant: what these weights are; None for the same as the bundled ones.
            files: weights that take the place of single components, by the component's name.
            device: where the model runs; None for the best that there is.
        """
        variant = DEMO if variant is None else variant
        if folder is not None:
            variant = dataclasses.replace(variant, bundled=folder)
        assert variant.bundled is not None
        source = ModelSource(variant, find_files(variant, variant.bundled, files))
        return cls(Session(source, place(device=device)))

    @property
    def variant(self) -> ModelVariant:
        """What the model is."""
        return self.session.variant

    @property
    def size(self) -> int:
        """Pixels a side of the images that it was trained on."""
        return self.variant.sample_size

    @property
    def files(self) -> Mapping[str, Path]:
        """Its files, by component, and the ``vocabulary``."""
        files = self.session.source.files
        return {**files.weights, VOCABULARY: files.vocabulary}

    def generate(self, prompt: str, seed: int, **options: Any) -> Tensor:
        """Generate an image; ``options`` are fields of `Request`."""
        request = Request(prompt, seed=seed, **options)
        events = generate(self.session, [request])
        (image,) = (event.pixels for event in events if isinstance(event, ImageDecoded))
        return image

    def img2img(self, image: Tensor, prompt: str, seed: int, strength: float) -> Tensor:
        """Generate an image from another."""
        return self.generate(prompt, seed, image=image, strength=strength)

    def inpaint(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        """Generate an image whose masked part (1, 1, H, W) is new."""
        return self.generate(prompt, seed, image=image, mask=mask)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode an image to latents, and decode these."""
        encoded = finish(encode(self.session.models(), image))
        return self.decode(encoded.mean * self.variant.vae.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to an image."""
        return finish(decode(self.session.models(), latents))

    def denoise(self, prompt: str, seed: int, scheduler: str, steps: int) -> list[Tensor]:
        """The latents after each evaluation of the UNet, as ``sdpy generate`` computes them."""
        session, models = self.session, self.session.models()
        plan = plan_request(session, Request(prompt, seed=seed, scheduler=scheduler, steps=steps))
        begin = finish(plan.task.prepare(models, plan.request, plan.skip))
        (conditioning,) = encode_plans(models, [plan])
        planned, generator = plan.fresh_scheduler(), seeded_generator(seed)
        with models.unet() as unet:
            steps_done = denoise(
                unet,
                planned,
                begin(planned, generator),
                conditioning,
                Guidance((plan.guidance_scale,)),
                generators=[generator],
            )
            return [step.latents.cpu() for step in steps_done]

    def plan(self, scheduler: str, steps: int) -> Scheduler:
        """The scheduler for this model, with its timesteps set.

        Raises:
            UsageError: more steps than the scheduler can do.
        """
        return plan_schedule(self.session, Request("", scheduler=scheduler, steps=steps))


def sdpy_command(folder: Path) -> list[str]:
    """The command ``sdpy``, with the model in a folder in the place of the bundled one."""
    program = (
        "import pathlib, sys, sdpy.zoo.bundle; "
        "sdpy.zoo.bundle.BUNDLE = pathlib.Path(sys.argv.pop(1)); "
        "from sdpy.__main__ import main; main()"
    )
    return [sys.executable, "-c", program, str(folder.absolute())]


def adds_noise(scheduler: Scheduler) -> bool:
    """Whether a scheduler whose timesteps are set draws fresh noise in its steps."""
    generator = seeded_generator(0)
    untouched = generator.get_state()
    latents = torch.zeros(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), timestep, latents, [generator])
    return not torch.equal(generator.get_state(), untouched)
