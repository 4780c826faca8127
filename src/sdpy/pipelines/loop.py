"""Where a denoising loop begins, and all that its steps need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.optimizations.approximate import UNet
from sdpy.pipelines.controlnet import LoadedControl, control_residuals, is_within
from sdpy.pipelines.guidance import Guidance, classifier_free_guidance
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


@dataclass(frozen=True, eq=False)
class Loop:
    """What the steps of a batch of B images need, on the UNet's device before the first one.

    Attributes:
        unet: that predicts.
        scheduler: with its timesteps set; used for this batch alone.
        steps: which of the scheduler's steps are done, the first one being 0.
        latents: (B, C, h, w) float32 that the first of them begins with.
        beside: what the UNet sees beside them, in its dtype; see `InitialLatents`.
        known: the part of the image that is kept; None for none.
        generators: one an image, of the noise that some schedulers add.
        controls: that steer the UNet.
        scale: (B, 1, 1, 1), of guidance.
        weights: (k, B, 1, 1, 1) of joined prompts; see `classifier_free_guidance`.
        rescale: of guidance.
        is_guided: of all of the scheduler's steps.
        conditionings: of all of them; equal ones are one and the same.
        timesteps: of all of them.
        embeddings: what the UNet is told of the time, and of what else there is, in each of
            ``steps``: (1, B or k B, time_embed_dim).
    """

    unet: UNet
    scheduler: Scheduler
    steps: range
    latents: Tensor
    beside: Tensor | None
    known: KnownRegion | None
    generators: Sequence[torch.Generator]
    controls: Sequence[LoadedControl]
    scale: Tensor
    weights: Tensor | None
    rescale: float
    is_guided: tuple[bool, ...]
    conditionings: Sequence[Conditioning]
    timesteps: Tensor
    embeddings: Sequence[Tensor]

    @classmethod
    def prepare(
        cls,
        unet: UNet,
        scheduler: Scheduler,
        start: InitialLatents,
        prompts: ConditioningSchedule,
        guidance: Guidance,
        *,
        generators: Sequence[torch.Generator] = (),
        controls: Sequence[LoadedControl] = (),
        steps: range | None = None,
    ) -> Loop:
        """Bring everything to the UNet's device; for the arguments see `denoise`."""
        device, dtype = unet.device, unet.dtype
        total = len(scheduler.timesteps)
        steps = range(total) if steps is None else steps
        beside = start.image_conditioning
        scales = guidance.scales
        timestep_cond: Tensor | None = None
        if unet.config.time_cond_proj_dim is not None:
            width = unet.config.time_cond_proj_dim
            timestep_cond = torch.cat([guidance_scale_embedding(scale, width) for scale in scales])
            timestep_cond = timestep_cond.to(device, dtype)
            scales = (1.0,) * len(scales)
        weights: Tensor | None = None
        if prompts.weights is not None:
            weights = torch.tensor(prompts.weights, device=device).T[:, :, None, None, None]
        is_guided = tuple(is_within(*guidance.interval, i, total) for i in range(total))
        conditionings = _conditionings(prompts, scales, is_guided, device, dtype)
        timesteps = torch.tensor(scheduler.timesteps, device=device)
        return cls(
            unet=unet,
            scheduler=scheduler,
            steps=steps,
            latents=start.latents.to(device),
            beside=None if beside is None else beside.to(device, dtype),
            known=None if start.known is None else start.known.to(device),
            generators=generators,
            controls=controls,
            scale=torch.tensor(scales, device=device)[:, None, None, None],
            weights=weights,
            rescale=guidance.rescale,
            is_guided=is_guided,
            conditionings=conditionings,
            timesteps=timesteps,
            embeddings=_embed_timesteps(unet, timesteps, conditionings, timestep_cond, steps),
        )

    @property
    def total(self) -> int:
        """How many steps the scheduler has."""
        return len(self.timesteps)

    def emb(self, i: int) -> Tensor:
        """What the UNet is told of the time, and of what else there is, in step ``i``."""
        return self.embeddings[i - self.steps.start]

    def predict(self, i: int, sample: Tensor) -> Tensor:
        """What the UNet predicts in step ``i``, (B or k B, C, h, w) float32.

        Args:
            i: the step.
            sample: (B, C, h, w), the latents as the UNet expects them, in its dtype.
        """
        conditioning, timestep = self.conditionings[i], self.timesteps[i]
        residuals = control_residuals(self.controls, i, self.total, sample, timestep, conditioning)
        if self.beside is not None:
            sample = torch.cat([sample, self.beside], dim=1)
        conditions: dict[str, Any] = {**conditioning.inputs(), **residuals}
        return self.unet(sample, timestep, emb=self.emb(i), **conditions).float()

    def guide(self, i: int, noise_pred: Tensor) -> Tensor:
        """The prediction (B, C, h, w) that guidance makes of those of the UNet in step ``i``."""
        scale = self.scale if self.is_guided[i] else torch.ones_like(self.scale)
        return classifier_free_guidance(noise_pred, scale, self.rescale, self.weights)

    def step(self, i: int, noise_pred: Tensor, latents: Tensor) -> Tensor:
        """The latents after step ``i``, given the guided prediction and those before."""
        timesteps = self.scheduler.timesteps
        latents = self.scheduler.step(noise_pred, timesteps[i], latents, self.generators)
        if self.known is None:
            return latents
        upcoming = timesteps[i + 1] if i + 1 < self.total else None
        return self.known.put_back(latents, self.scheduler, upcoming)


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
