"""Every sampler beside diffusers', step by step.

At each step both are given diffusers' latents, the same prediction and noise of the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from parity.compare import MODEL_TOLERANCE, normal, relative_error
from sdpy.samplers import SAMPLERS
from sdpy.schedulers import NoiseConfig, Scheduler, make_scheduler

SHAPE = (2, 4, 6, 5)
WEIGHTS = normal(4, 4, 3, 3, seed=9) / 6
STEPS = (1, 2, 3, 5, 30)

NOISES = {
    "epsilon": NoiseConfig(),
    "v_prediction": NoiseConfig(prediction_type="v_prediction"),
    "sample": NoiseConfig(prediction_type="sample"),
    "zero snr": NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True),
}
SPACINGS = ("leading", "linspace", "trailing")
RAMPS = (None, "karras", "exponential", "beta")


@dataclass(frozen=True)
class Reference:
    """diffusers' counterpart of a sampler.

    Attributes:
        cls: its class.
        options: its options beyond those of the noise and the schedule.
        spacings: timestep spacings that it takes; none: it has its own and no such option.
        ramps: sigmas that it takes.
        predictions: prediction types that it takes.
        draws: whether its steps take a generator.
    """

    cls: type
    options: tuple[tuple[str, object], ...] = ()
    spacings: tuple[str, ...] = SPACINGS
    ramps: tuple[str | None, ...] = RAMPS
    predictions: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    draws: bool = False

    def make(self, noise: NoiseConfig, spacing: str | None, ramp: str | None) -> Any:
        options: dict[str, Any] = {
            "num_train_timesteps": noise.num_train_timesteps,
            "beta_start": noise.beta_start,
            "beta_end": noise.beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": noise.prediction_type,
            **dict(self.options),
        }
        if self.spacings:
            options.update(timestep_spacing=spacing, steps_offset=1)
        if ramp is not None:
            options[f"use_{ramp}_sigmas"] = True
        scheduler = self.cls(**options)
        if noise.rescale_betas_zero_snr:
            # Not all have the option; all make their levels from this when the steps are set.
            scheduler.alphas_cumprod = zero_snr_alphas()
        return scheduler


@functools.cache
def zero_snr_alphas() -> Tensor:
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod


NO_SAMPLE = ("epsilon", "v_prediction")
REFERENCES = {
    "euler": Reference(diffusers.EulerDiscreteScheduler),
    "euler-a": Reference(
        diffusers.EulerAncestralDiscreteScheduler,
        ramps=(None,),
        predictions=NO_SAMPLE,
        draws=True,
    ),
    "heun": Reference(diffusers.HeunDiscreteScheduler),
    "dpm++-2m": Reference(diffusers.DPMSolverMultistepScheduler),
}


def cases() -> Iterator[tuple[str, str, str | None, str | None]]:
    for name, reference in REFERENCES.items():
        for noise in NOISES.values():
            if noise.prediction_type not in reference.predictions:
                continue
            for spacing in reference.spacings or (None,):
                for ramp in reference.ramps:
                    pure = noise.rescale_betas_zero_snr
                    if pure and not SAMPLERS[name].begins_with_pure_noise and spacing != "leading":
                        continue
                    label = next(key for key, value in NOISES.items() if value is noise)
                    yield name, label, spacing, ramp


def pair(name: str, noise: NoiseConfig, spacing: str | None, ramp: str | None) -> tuple[Any, Any]:
    reference = REFERENCES[name]
    ours = make_scheduler(
        name, noise, timestep_spacing=spacing if reference.spacings else None, sigmas=ramp
    )
    return ours, reference.make(noise, spacing, ramp)


def model(x: Tensor, timestep: Tensor) -> Tensor:
    """A small random network: a convolution with a bias that depends on the timestep."""
    x = torch.nn.functional.conv2d(x, WEIGHTS, padding=1)
    return torch.tanh(x + torch.sin(timestep.float() / 50)) + 0.1 * x


def errors(name: str, ours: Scheduler, theirs: Any, timesteps: Tensor, latents: Tensor):
    """The relative error of each step of a walk along ``timesteps``."""
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    extra = {"generator": generators[1]} if REFERENCES[name].draws else {}
    before = latents
    for our_timestep, timestep in zip(ours.timesteps, timesteps, strict=True):
        scaled = theirs.scale_model_input(latents, timestep)
        yield relative_error(ours.scale_model_input(latents, our_timestep), scaled)
        output = model(scaled, timestep)
        result = ours.step(output, our_timestep, latents, generators[0])
        # Of small differences it takes quotients by sigma, for which fp32 is too coarse.
        dtype = torch.float32 if extra else torch.float64  # it would draw other noise
        precise = [tensor.to(dtype) for tensor in (output, latents)]
        following = theirs.step(precise[0], timestep, precise[1], **extra).prev_sample.float()
        # A step from high levels to low ones keeps the roundings of the large numbers, and a step
        # of two evaluations those from before the first.
        rounding = 8 * 2**-24 * max(before.norm(), latents.norm()) / following.norm()
        yield relative_error(result, following) - rounding.item()
        before, latents = latents, following


def set_both(ours: Scheduler, theirs: Any, steps: int) -> None:
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(0)  # otherwise it takes the second of timesteps that occur twice


def check_schedule(ours: Scheduler, theirs: Any, ramp: str | None) -> None:
    a, b = ours.timesteps.double(), theirs.timesteps.double()
    if not theirs.timesteps.is_floating_point() and ramp in ("exponential", "beta"):
        # Cut to whole numbers; its 998.99997 becomes 998.
        assert a[0] == 999 and b[0] in (998, 999)
        a, b = a[1:], b[1:]
    # Its zero-terminal-SNR table is made of differences of roundings.
    zero_snr = ours.noise.rescale_betas_zero_snr
    assert torch.allclose(a, b, rtol=0, atol=5e-3 if zero_snr else 2e-3)
    if hasattr(theirs, "sigmas"):
        tolerance = 5e-5 if zero_snr else 1e-5
        assert torch.allclose(torch.tensor(ours.sigmas), theirs.sigmas, rtol=tolerance, atol=0)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)


@pytest.mark.parametrize(("name", "noise", "spacing", "ramp"), cases())
def test_every_step(name: str, noise: str, spacing: str | None, ramp: str | None) -> None:
    ours, theirs = pair(name, NOISES[noise], spacing, ramp)
    for steps in STEPS:
        set_both(ours, theirs, steps)
        check_schedule(ours, theirs, ramp)
        latents = normal(*SHAPE) * ours.init_noise_sigma
        worst = max(errors(name, ours, theirs, theirs.timesteps, latents))
        assert worst <= MODEL_TOLERANCE, steps
