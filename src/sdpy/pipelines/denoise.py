"""The denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdpy.errors import PaintingError
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.optimizations.approximate import UNet
from sdpy.pipelines.controlnet import LoadedControl, steer, within
from sdpy.pipelines.events import Notice
from sdpy.pipelines.recovery import Resort, attempt, finish
from sdpy.schedulers import Scheduler
from sdpy.text.prompts import PromptEmbeddings


@dataclass(frozen=True)
class Walk:
    """Where a sample's walk begins, and what accompanies it.

    Attributes:
        latents: (1, C, h, w) float32, as noisy as the first timestep says.
        conditioning: (1, C', h, w) that the UNet sees beside the latents at every step (9-channel
            inpainting: the mask, then the latents of the masked picture); None for none.
        after_step: called with the latents and the timestep that comes next (None after the last)
            returns the latents to go on with.
    """

    latents: Tensor
    conditioning: Tensor | None = None
    after_step: Callable[[Tensor, Tensor | None], Tensor] | None = None


@dataclass(frozen=True)
class Step:
    """One step that was done: the ``index``-th (from 1) of ``total``, and the latents after it.

    ``notices`` tell what was done where memory ran out.
    """

    index: int
    total: int
    latents: Tensor
    notices: tuple[Notice, ...] = ()


def denoise(
    unet: UNet,
    scheduler: Scheduler,
    walk: Walk,
    embeddings: PromptEmbeddings,
    *,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator,
    controls: Sequence[LoadedControl] = (),
    resorts: Sequence[Resort] = (),
) -> Iterator[Step]:
    """Walk from noise to clean latents, one evaluation of the UNet a step.

    Args:
        unet: on any device, in any floating-point dtype.
        scheduler: with its timesteps set.
        walk: where to begin. Latents are float32 throughout and live on the UNet's device.
        embeddings: of the prompt.
        guidance_scale: of classifier-free guidance; 1 needs half of the work. A UNet that takes
            the scale as an embedding needs half of the work at any.
        guidance_rescale: see `classifier_free_guidance`.
        guidance_interval: shares of the evaluations between which there is guidance; those before
            and after do without, as at scale 1. In terms of noise, as in the paper, it depends on
            the schedule: with Stable Diffusion's and evenly spaced timesteps sigma is 8.3, 5.1,
            3.3, 1.6, 0.83, 0.57 and 0.34 at 0.1, 0.2, 0.3, 0.5, 0.7, 0.8 and 0.9. Source:
            "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
            Diffusion Models" (Kynkäänniemi et al., 2024).
        generator: of the noise that some schedulers add.
        controls: ControlNets that steer the UNet.
        resorts: what can be done where memory runs out.

    Raises:
        ShortageError: there is not enough memory.
        PaintingError: the latents are not finite any more.
    """
    device, dtype = unet.device, unet.dtype
    latents = walk.latents.to(device)
    timestep_cond = None
    if unet.config.time_cond_proj_dim is not None:
        timestep_cond = guidance_scale_embedding(guidance_scale, unet.config.time_cond_proj_dim)
        timestep_cond = timestep_cond.to(device, dtype)
        guidance_scale = 1.0
    both_prompts = guidance_context(embeddings, guidance_scale).to(device, dtype)
    prompt_alone = both_prompts[-1:]
    conditioning = None if walk.conditioning is None else walk.conditioning.to(device, dtype)
    timesteps = scheduler.timesteps

    @torch.inference_mode()
    def predict(i: int, sample: Tensor, context: Tensor) -> Tensor:
        t = timesteps[i].to(device)
        down_residuals, mid_residual = steer(controls, i, len(timesteps), sample, t, context)
        if conditioning is not None:
            sample = torch.cat([sample, conditioning], dim=1)
        return unet(
            sample,
            t,
            context,
            timestep_cond=timestep_cond,
            down_block_additional_residuals=down_residuals,
            mid_block_additional_residual=mid_residual,
        ).float()

    left = list(resorts)
    for i, timestep in enumerate(timesteps):
        guided = within(*guidance_interval, i, len(timesteps))
        context = both_prompts if guided else prompt_alone
        with torch.inference_mode():
            sample = scheduler.scale_model_input(latents, timestep).to(dtype)
        work = attempt(partial(predict, i, sample, context), left, "the UNet")
        notices: list[Notice] = []
        prediction = finish(work, notices.append)
        with torch.inference_mode():
            prediction = classifier_free_guidance(prediction, guidance_scale, guidance_rescale)
            latents = scheduler.step(prediction, timestep, latents, generator)
            if walk.after_step is not None:
                upcoming = timesteps[i + 1] if i + 1 < len(timesteps) else None
                latents = walk.after_step(latents, upcoming)
            if not latents.isfinite().all():
                instead = "--dtype fp32" if dtype != torch.float32 else "other weights"
                raise PaintingError(
                    f"step {i + 1} of {len(timesteps)} gave latents that are not finite: try "
                    f"another --scheduler, a lower --guidance-scale, or {instead}"
                )
        yield Step(i + 1, len(timesteps), latents, tuple(notices))


def guidance_context(embeddings: PromptEmbeddings, guidance_scale: float) -> Tensor:
    """What the UNet attends to: (2, T, D), the negative prompt first; (1, T, D) at scale 1."""
    if guidance_scale == 1:
        return embeddings.prompt
    return torch.cat([embeddings.negative, embeddings.prompt])


def classifier_free_guidance(
    prediction: Tensor, guidance_scale: float, guidance_rescale: float = 0.0
) -> Tensor:
    """Move from the prediction for the negative prompt towards, and past, that for the prompt.

    Args:
        prediction: (2, C, h, w), the negative prompt's first; or (1, C, h, w), which is returned.
        guidance_scale: 0 for the negative prompt alone, 1 for the prompt alone.
        guidance_rescale: how far to bring the result's deviation back to that of the prediction
            for the prompt, in [0, 1]; high scales raise it, and with it the picture's contrast.

    Source: "Classifier-Free Diffusion Guidance" (Ho and Salimans, 2022), equation 6, with the
    scale of "Imagen" (Saharia et al., 2022), equation 2; "Common Diffusion Noise Schedules and
    Sample Steps are Flawed" (Lin et al., 2023), equations 14 to 16, for the rescaling.
    """
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    guided = negative + guidance_scale * (positive - negative)
    if guidance_rescale == 0:
        return guided
    ratio = positive.std() / guided.std()
    return guided * (guidance_rescale * ratio + (1 - guidance_rescale))
