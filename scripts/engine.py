"""The demo model as the scripts use it: everything that they ask of sdpy's engine is here.

What stands beside this is the benchmark of single phases (`scripts.bench.workers`) and of parts of
a UNet (`scripts.bench.measure_approximations`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpy import pipelines
from sdpy.pipelines import Components, Event, Painted, Settings
from sdpy.pipelines import vae as vae_pipeline
from sdpy.pipelines.denoise import Walk, denoise
from sdpy.pipelines.paint import latent_shape, plan, tokenize
from sdpy.runtime.devices import place, seeded_generator
from sdpy.schedulers import Scheduler
from sdpy.text.prompts import encode_prompt
from sdpy.zoo.components import find_files
from sdpy.zoo.variants import DEMO, ModelVariant

DEFAULT_SCHEDULER = Settings("").scheduler
"""The scheduler of a request that names none."""


@dataclass(frozen=True)
class DemoModel:
    """The demo model, whose components stay loaded once they are.

    Images are float32 (1, 3, H, W) in [-1, 1]; latents (1, C, h, w).
    """

    components: Components

    @classmethod
    def open(
        cls,
        folder: Path | None = None,
        *,
        files: Mapping[str, Path] | None = None,
        device: str | None = None,
    ) -> DemoModel:
        """Open the bundled model.

        Args:
            folder: of other weights than the bundled ones, under the same names.
            files: weights that take the place of single components, by the component's name.
            device: where the model runs; None for the best that there is.
        """
        variant = DEMO if folder is None else dataclasses.replace(DEMO, bundled=folder)
        assert variant.bundled is not None
        found = find_files(variant, variant.bundled, dict(files or {}))
        keep = frozenset({"text_encoder", "unet", "vae"})
        return cls(Components(variant, found, placement=place(device=device), keep=keep))

    @property
    def variant(self) -> ModelVariant:
        """What the model is."""
        return self.components.variant

    @property
    def size(self) -> int:
        """Pixels a side of the images that it was trained on."""
        return self.variant.sample_size

    @property
    def files(self) -> Mapping[str, Path]:
        """Its files, by component, and the ``vocabulary``."""
        return vars(self.components.files)

    def generate(self, prompt: str, seed: int, **settings: Any) -> Tensor:
        """Generate an image; ``settings`` are fields of `Settings`."""
        request = Settings(prompt, seed=seed, **settings)
        return _image(
            pipelines.generate(self.components, request, width=self.size, height=self.size)
        )

    def img2img(self, image: Tensor, prompt: str, seed: int, strength: float) -> Tensor:
        """Generate an image from another."""
        request = Settings(prompt, seed=seed)
        return _image(pipelines.img2img(self.components, request, image, strength=strength))

    def inpaint(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        """Generate an image whose masked part (1, 1, H, W) is new."""
        request = Settings(prompt, seed=seed)
        return _image(pipelines.inpaint(self.components, request, image, mask))

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode an image to latents, and decode these."""
        with self.components.vae() as vae, torch.inference_mode():
            reconstruction: Tensor = vae.decode(vae.encode(image).mean)
            return reconstruction

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to an image."""
        return vae_pipeline.decode(self.components, latents)

    def denoise(self, prompt: str, seed: int, scheduler: str, steps: int) -> list[Tensor]:
        """The latents after each evaluation of the UNet, as ``sdpy generate`` computes them."""
        components = self.components
        request = Settings(prompt, seed=seed, scheduler=scheduler, steps=steps)
        planned = plan(components, request)
        generator = seeded_generator(seed)
        shape = latent_shape(components, self.size, self.size)
        start = torch.randn(shape, generator=generator) * planned.init_noise_sigma
        with components.text_encoder() as text_encoder:
            embeddings = encode_prompt(
                *tokenize(components, request),
                components.tokenizer,
                text_encoder,
                pad_id=components.variant.pad_id,
            )
        with components.unet() as unet:
            steps_done = denoise(
                unet,
                planned,
                Walk(start),
                embeddings,
                guidance_scale=components.variant.guidance_scale,
                generator=generator,
            )
            return [step.latents.cpu() for step in steps_done]

    def plan(self, scheduler: str, steps: int) -> Scheduler:
        """The scheduler for this model, with its timesteps set.

        Raises:
            UsageError: more steps than the scheduler can do.
        """
        return plan(self.components, Settings("", scheduler=scheduler, steps=steps))


def adds_noise(scheduler: Scheduler) -> bool:
    """Whether a scheduler whose timesteps are set draws fresh noise in its steps."""
    generator = seeded_generator(0)
    untouched = generator.get_state()
    latents = torch.zeros(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), timestep, latents, generator)
    return not torch.equal(generator.get_state(), untouched)


def _image(events: Iterator[Event]) -> Tensor:
    (image,) = (event.picture for event in events if isinstance(event, Painted))
    return image
