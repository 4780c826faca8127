"""The denoising loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdpy.errors import GenerationError
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.optimizations.approximate import UNet
from sdpy.pipelines.controlnet import LoadedControl, control_residuals, is_within
from sdpy.runtime.fallbacks import Fallback, Notice, attempt, finish
from sdpy.schedulers.base import Scheduler
from sdpy.text.conditioning import Conditioning, ConditioningSchedule


@dataclass(frozen=True)
class KnownRegion:
    """A part of an image that inpainting keeps, whose latents are put back after every step.

    Attributes:
        latents: (B, C, h, w) float32 of the image.
        noise: likewise, the noise that the latents began with.
        mask: (B, 1, h, w), 1 where the image is repainted.

    Source: "RePaint" (Lugmayr et al., 2022), equation 8, without resampling.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> KnownRegion:
        """The same on another device."""
        return KnownRegion(*(x.to(device) for x in (self.latents, self.noise, self.mask)))

    def put_back(self, latents: Tensor, scheduler: Scheduler, upcoming: float | None) -> Tensor:
        """``latents`` inside the mask, outside the image's, as noisy as the next timestep is.

        Args:
            latents: (B, C, h, w).
            scheduler: of the loop.
            upcoming: the next timestep; None after the last.
        """
        known = self.latents
        if upcoming is not None:
            known = scheduler.add_noise(known, self.noise, upcoming)
        return self.mask * latents + (1 - self.mask) * known


@dataclass(frozen=True)
class InitialLatents:
    """Where the loop begins for a batch of images, and what it keeps to.

    Attributes:
        latents: (B, C, h, w) float32, as noisy as the first timestep says.
        image_conditioning: (B, C', h, w) that the UNet sees beside the latents at every step
            (inpainting with 9 channels: mask, then latents of the masked image); None for none.
        known: the part of the image that is kept; None for none.
    """

    latents: Tensor
    image_conditioning: Tensor | None = None
    known: KnownRegion | None = None

    @classmethod
    def cat(cls, parts: Sequence[InitialLatents]) -> InitialLatents:
        """One batch of several of one task."""
        conditioning = [p.image_conditioning for p in parts if p.image_conditioning is not None]
        known = [part.known for part in parts if part.known is not None]
        return cls(
            torch.cat([part.latents for part in parts]),
            torch.cat(conditioning) if conditioning else None,
            KnownRegion(
                torch.cat([one.latents for one in known]),
                torch.cat([one.noise for one in known]),
                torch.cat([one.mask for one in known]),
            )
            if known
            else None,
        )


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a batch.

    Attributes:
        scales: one an image; 0 for the negative prompt alone, 1 for the prompt alone. Where all
            are 1, half of the work is left out, unless ``AND`` joins several prompts; so it is at
            any scale where the UNet takes the scale as an embedding.
        rescale: see `classifier_free_guidance`.
        interval: shares of the evaluations between which there is guidance; those before and after
            do without, as at scale 1. In terms of noise, as in the paper, it depends on the
            schedule: with Stable Diffusion's and evenly spaced timesteps sigma is 8.3, 5.1, 3.3,
            1.6, 0.83, 0.57 and 0.34 at 0.1, 0.2, 0.3, 0.5, 0.7, 0.8 and 0.9. Source: "Applying
            Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
            Models" (Kynkäänniemi et al., 2024).
    """

    scales: tuple[float, ...]
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Step:
    """A step that was done.

    Attributes:
        index: its number, from 1.
        total: how many steps there are.
        latents: (B, C, h, w) float32 after it, on the UNet's device.
        notices: what was done where memory ran out.
    """

    index: int
    total: int
    latents: Tensor
    notices: tuple[Notice, ...] = ()


def denoise(
    unet: UNet,
    scheduler: Scheduler,
    start: InitialLatents,
    prompts: ConditioningSchedule,
    guidance: Guidance,
    *,
    generators: Sequence[torch.Generator] = (),
    controls: Sequence[LoadedControl] = (),
    fallbacks: Sequence[Fallback] = (),
    steps: range | None = None,
) -> Iterator[Step]:
    """Go from noise to clean latents, a batch of B images at a time.

    Whatever a step needs is on the UNet's device before the first one, and nothing in a step waits
    for that device, so that a GPU is never idle. On a CPU, latents that are not finite end the loop
    at once, on other devices after the last step.

    Args:
        unet: on any device, in any floating-point dtype.
        scheduler: with its timesteps set; used for this batch alone.
        start: where to begin. Latents are float32 throughout and live on the UNet's device.
        prompts: of the batch.
        guidance: of the batch.
        generators: one an image, of the noise that some schedulers add.
        controls: ControlNets that steer the UNet.
        fallbacks: what can be done where memory runs out.
        steps: which of the scheduler's steps to do, the first one being 0; None for all. The next
            ones can be done by another UNet with the same scheduler.

    Yields:
        Each step, after it is done or, on a GPU, underway.

    Raises:
        ShortageError: there is not enough memory.
        GenerationError: the latents are not finite any more.
    """
    device, dtype = unet.device, unet.dtype
    timesteps = scheduler.timesteps
    total = len(timesteps)
    steps = range(total) if steps is None else steps
    latents = start.latents.to(device)
    beside = start.image_conditioning
    beside = None if beside is None else beside.to(device, dtype)
    known = None if start.known is None else start.known.to(device)

    scales = guidance.scales
    timestep_cond: Tensor | None = None
    if unet.config.time_cond_proj_dim is not None:
        width = unet.config.time_cond_proj_dim
        timestep_cond = torch.cat([guidance_scale_embedding(scale, width) for scale in scales])
        timestep_cond = timestep_cond.to(device, dtype)
        scales = (1.0,) * len(scales)
    at_scale = torch.tensor(scales, device=device)[:, None, None, None]
    weights: Tensor | None = None
    if prompts.weights is not None:
        weights = torch.tensor(prompts.weights, device=device).T[:, :, None, None, None]
    is_guided = [is_within(*guidance.interval, i, total) for i in range(total)]
    seen = _conditionings(prompts, scales, is_guided, device, dtype)
    on_device = torch.tensor(timesteps, device=device)
    embeddings = _embed_timesteps(unet, on_device, seen, timestep_cond, steps)
    finite = FiniteCheck(device, dtype, total, steps.start)

    @torch.inference_mode()
    def predict(i: int, sample: Tensor) -> Tensor:
        conditioning = seen[i]
        residuals = control_residuals(controls, i, total, sample, on_device[i], conditioning)
        if beside is not None:
            sample = torch.cat([sample, beside], dim=1)
        conditions: dict[str, Any] = {**conditioning.inputs(), **residuals}
        emb = embeddings[i - steps.start]
        return unet(sample, on_device[i], emb=emb, **conditions).float()

    left = list(fallbacks)
    for i in steps:
        timestep = timesteps[i]
        with torch.inference_mode():
            sample = scheduler.scale_model_input(latents, timestep).to(dtype)
        notices: list[Notice] = []
        work = attempt(partial(predict, i, sample), left, "the UNet")
        noise_pred = finish(work, notices.append)
        with torch.inference_mode():
            scale = at_scale if is_guided[i] else torch.ones_like(at_scale)
            noise_pred = classifier_free_guidance(noise_pred, scale, guidance.rescale, weights)
            latents = scheduler.step(noise_pred, timestep, latents, generators)
            if known is not None:
                upcoming = timesteps[i + 1] if i + 1 < total else None
                latents = known.put_back(latents, scheduler, upcoming)
            finite.look_at(latents)
        yield Step(i + 1, total, latents, tuple(notices))
    finite.finish()


def _conditionings(
    prompts: ConditioningSchedule,
    scales: Sequence[float],
    is_guided: Sequence[bool],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Conditioning]:
    """What the UNet is conditioned on in each step; equal ones are one and the same.

    Returns:
        With guidance (1 + k) B rows, those of the negative prompts first; without it B rows. Joined
        prompts need the negative ones even at scale 1.
    """
    always = prompts.weights is not None
    guides = always or any(one != 1 for one in scales)
    made: dict[tuple[int, bool], Conditioning] = {}
    seen = []
    for i, guided in enumerate(is_guided):
        key = (prompts.index(i), guides and (guided or always))
        if key not in made:
            one = prompts.conditionings[key[0]]
            parts = [one.negative, *one.prompts] if key[1] else one.prompts
            made[key] = Conditioning.cat([part.to(device, dtype) for part in parts])
        seen.append(made[key])
    return seen


def _embed_timesteps(
    unet: UNet,
    timesteps: Tensor,
    seen: Sequence[Conditioning],
    timestep_cond: Tensor | None,
    steps: range,
) -> list[Tensor]:
    """What the UNet makes of time and of what else it is told in these steps, before the loop.

    On a GPU, those of all steps are made at once where nothing but the time is told. On a CPU they
    are not, because the rounding of a product depends on how many rows it has.

    Returns:
        One tensor a step, (1, B or k B, time_embed_dim).
    """
    embeddings: list[Tensor] = []
    only_time = timestep_cond is None and all(len(seen[i].inputs()) == 1 for i in steps)
    if only_time and timesteps.device.type != "cpu":
        with torch.inference_mode():
            return list(torch.split(unet.embed(timesteps[steps.start : steps.stop]), 1))
    for i in steps:
        added = seen[i].inputs()
        del added["encoder_hidden_states"]
        with torch.inference_mode():
            embeddings.append(unet.embed(timesteps[i], timestep_cond, **added))
    return embeddings


class FiniteCheck:
    """Finds out at which step latents cease to be finite, without waiting for a GPU.

    Args:
        device: of the latents. On a CPU each step is looked at as soon as it is done.
        dtype: of the UNet, for the advice.
        total: how many steps there are.
        first: the first of those that are looked at, from 0.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, total: int, first: int = 0
    ) -> None:
        self.at_once = device.type == "cpu"
        self.dtype, self.total, self.first = dtype, total, first
        self._done = torch.zeros((), dtype=torch.int64, device=device)
        self._going = torch.ones((), dtype=torch.bool, device=device)
        self._looked_at = 0

    def look_at(self, latents: Tensor) -> None:
        """Take note of a step's result.

        Raises:
            GenerationError: it is not finite, and could be looked at at once.
        """
        self._going = self._going & latents.isfinite().all()
        self._done = self._done + self._going
        self._looked_at += 1
        if self.at_once:
            self.finish()

    def finish(self) -> None:
        """Look at what was noted so far, which waits for the device.

        Raises:
            GenerationError: a step gave latents that are not finite.
        """
        done = int(self._done)
        if done == self._looked_at:
            return
        instead = "--dtype fp32" if self.dtype != torch.float32 else "other weights"
        raise GenerationError(
            f"step {self.first + done + 1} of {self.total} gave latents that are not finite: try "
            f"another --scheduler, a lower --guidance-scale, or {instead}"
        )


def classifier_free_guidance(
    noise_pred: Tensor,
    guidance_scale: Tensor | float,
    guidance_rescale: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Move from the prediction for the negative prompt towards, and past, that for the prompt.

    Args:
        noise_pred: (2 B, C, h, w), those for the negative prompts first; or (B, C, h, w) without
            guidance, which is returned.
        guidance_scale: (B, 1, 1, 1), or one for all; 0 for the negative prompt alone, 1 for the
            prompt alone.
        guidance_rescale: how far to bring the result's deviation back to that of the prediction
            for the prompt, in [0, 1]; high scales raise it, and with it the image's contrast.
        weights: (k, B, 1, 1, 1) of k prompts that are joined; ``noise_pred`` is ((1 + k) B, ...)
            then. The prediction for the prompt is that for the negative prompt, and the weighted
            ways from there to those of the k prompts.

    Source: "Classifier-Free Diffusion Guidance" (Ho and Salimans, 2022), equation 6, with the
    scale of "Imagen" (Saharia et al., 2022), equation 2; "Common Diffusion Noise Schedules and
    Sample Steps are Flawed" (Lin et al., 2023), equations 14 to 16, for the rescaling;
    "Compositional Visual Generation with Composable Diffusion Models" (Liu et al., 2022), equation
    12, for joined prompts.
    """
    batch = len(guidance_scale) if isinstance(guidance_scale, Tensor) else 1
    if len(noise_pred) == batch:
        return noise_pred
    if weights is None:
        negative, positive = noise_pred.chunk(2)
    else:
        negative, *parts = noise_pred.chunk(1 + len(weights))
        ways = (weight * (part - negative) for weight, part in zip(weights, parts, strict=True))
        positive = negative + sum(ways, torch.zeros_like(negative))
    guided = negative + guidance_scale * (positive - negative)
    if guidance_rescale == 0:
        return guided
    ratio = _deviation(positive) / _deviation(guided)
    return guided * (guidance_rescale * ratio + (1 - guidance_rescale))


def _deviation(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, 1, 1), the standard deviation of each image's values."""
    return x.std(dim=(1, 2, 3), keepdim=True)
