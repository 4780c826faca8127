"""Every sampler beside diffusers', step by step.

At each step both are given diffusers' latents, the same prediction and noise of the same seeds.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from torch import Tensor

from sdpy.schedulers import (
    SCHEDULERS,
    NoiseConfig,
    Scheduler,
    dpmsolver_multistep,
    make_scheduler,
)
from sdpy.schedulers.deis import DEISMultistepScheduler
from sdpy.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from sdpy.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.thresholding import DynamicThresholding
from sdpy.schedulers.unipc import UniPCMultistepScheduler
from support.compare import MODEL_TOLERANCE, RUN_TOLERANCE, normal, relative_error

SHAPE = (2, 4, 6, 5)
WEIGHTS = normal(4, 4, 3, 3, seed=9) / 6
STEPS = (1, 2, 3, 5, 30)
LATER = [(3, 1), (5, 2), (5, 4), (30, 20), (30, 29)]

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
        if "rescale_betas_zero_snr" in inspect.signature(self.cls).parameters:
            options["rescale_betas_zero_snr"] = noise.rescale_betas_zero_snr
        scheduler = self.cls(**options)
        if noise.rescale_betas_zero_snr and "rescale_betas_zero_snr" not in scheduler.config:
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


class OtherSign(diffusers.DPMSolverMultistepScheduler):
    """With the sign of 1/2 in the stochastic third order as the integral has it.

    `test_third_order_integrates_the_prediction` shows that it has.
    """

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, **kwargs):
        result = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **kwargs)
        m0, m1, m2 = (model_output_list[-k] for k in (1, 2, 3))
        index = self.step_index
        l2, l1, l0, end = (-self.sigmas[k].double().log() for k in range(index - 2, index + 2))
        r0, r1 = (l0 - l1) / (end - l0), (l1 - l2) / (end - l0)
        curvature = ((m0 - m1) / r0 - (m1 - m2) / r1) / (r0 + r1)
        return result + curvature / (1 + self.sigmas[index + 1] ** 2) ** 0.5


class GivenNoise(diffusers.DPMSolverSDEScheduler):
    """With noise of generators, in the place of a Brownian tree's of a seed.

    `test_k_diffusion` shows that the noise of the two halves of a step belongs together like this.
    """

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any) -> Any:
        def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            fresh = draw_noise(sample, generator)
            if self.state_in_first_order:
                self.middle, self.half = sigma_next, fresh
                return fresh
            first, second = sigma - self.middle, self.middle - sigma_next
            return (first.sqrt() * self.half + second.sqrt() * fresh) / (first + second).sqrt()

        self.noise_sampler = draw
        return super().step(model_output, timestep, sample)


NO_SAMPLE = ("epsilon", "v_prediction")
MULTISTEP = diffusers.DPMSolverMultistepScheduler
SINGLESTEP = diffusers.DPMSolverSinglestepScheduler
SDE = ("algorithm_type", "sde-dpmsolver++")
THIRD = ("solver_order", 3)
REFERENCES = {
    # ddim has a file of its own
    "ddpm": Reference(
        diffusers.DDPMScheduler, (("clip_sample", False),), ramps=(None,), draws=True
    ),
    "pndm": Reference(
        diffusers.PNDMScheduler,
        (("skip_prk_steps", True),),
        ramps=(None,),
        predictions=NO_SAMPLE,
    ),
    "euler": Reference(diffusers.EulerDiscreteScheduler),
    "euler-a": Reference(
        diffusers.EulerAncestralDiscreteScheduler,
        ramps=(None,),
        predictions=NO_SAMPLE,
        draws=True,
    ),
    "heun": Reference(diffusers.HeunDiscreteScheduler),
    "lms": Reference(diffusers.LMSDiscreteScheduler),
    "kdpm2": Reference(diffusers.KDPM2DiscreteScheduler, predictions=NO_SAMPLE),
    "kdpm2-a": Reference(
        diffusers.KDPM2AncestralDiscreteScheduler, predictions=NO_SAMPLE, draws=True
    ),
    "dpm++-2m": Reference(MULTISTEP),
    "dpm++-3m": Reference(MULTISTEP, (THIRD,)),
    "dpm++-2m-sde": Reference(MULTISTEP, (SDE,), draws=True),
    "dpm++-3m-sde": Reference(OtherSign, (SDE, THIRD), draws=True),
    "dpm++-sde": Reference(GivenNoise, predictions=NO_SAMPLE, draws=True),
    "dpm++-2s": Reference(SINGLESTEP, spacings=()),
    "dpm++-3s": Reference(SINGLESTEP, (THIRD,), spacings=()),
    "unipc": Reference(diffusers.UniPCMultistepScheduler),
    "deis": Reference(diffusers.DEISMultistepScheduler),
    "lcm": Reference(diffusers.LCMScheduler, spacings=(), ramps=(None,), draws=True),
    "tcd": Reference(diffusers.TCDScheduler, spacings=(), ramps=(None,), draws=True),
}


# Their ramps do not depend on the spacing.
SPAN_TRAINING = [
    *(name for name in REFERENCES if name.startswith("dpm++") and name != "dpm++-sde"),
    *("unipc", "deis"),
]


def cases() -> Iterator[tuple[str, str, str | None, str | None]]:
    for name, reference in REFERENCES.items():
        for noise in NOISES.values():
            if noise.prediction_type not in reference.predictions:
                continue
            for spacing in reference.spacings or (None,):
                for ramp in reference.ramps:
                    pure = noise.rescale_betas_zero_snr
                    if (
                        pure
                        and not SCHEDULERS[name].begins_with_pure_noise
                        and spacing != "leading"
                    ):
                        continue
                    usual = spacing in (None, "linspace") or (pure and spacing == "leading")
                    ends_matter = noise is NOISES["epsilon"] and name not in SPAN_TRAINING
                    if ramp is not None and not (usual or ends_matter):
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


def seeded() -> list[torch.Generator]:
    """One generator per image. diffusers, too, takes such a list and draws from each in turn."""
    return [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]


def errors(name: str, ours: Scheduler, theirs: Any, timesteps: Tensor, latents: Tensor):
    """The relative error of each step of a denoising loop over ``timesteps``."""
    generators = seeded(), seeded()
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
        # A step from high sigmas to low ones keeps the roundings of the large numbers, and a step
        # of two evaluations those from before the first.
        rounding = 8 * 2**-24 * max(before.norm(), latents.norm()) / following.norm()
        yield relative_error(result, following) - rounding.item()
        before, latents = latents, following


def set_both(ours: Scheduler, theirs: Any, steps: int) -> None:
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(0)  # otherwise it takes the second of timesteps that occur twice
    if isinstance(theirs, diffusers.DEISMultistepScheduler):
        third = theirs.config.solver_order == 3
        if third or ours.noise.rescale_betas_zero_snr:
            # Its coefficients are differences of large numbers, for which fp32 is too coarse.
            theirs.sigmas = theirs.sigmas.double()
    if getattr(theirs.config, "algorithm_type", None) == "sde-dpmsolver++":
        # Quotients of differences of logarithms: two sigmas of the beta ramp are 0.6 % apart.
        theirs.sigmas = theirs.sigmas.double()


def check_schedule(ours: Scheduler, theirs: Any, ramp: str | None) -> None:
    a, b = torch.tensor(ours.timesteps).double(), theirs.timesteps.double()
    if not theirs.timesteps.is_floating_point() and ramp in ("exponential", "beta"):
        # Cut to whole numbers; its 998.99997 becomes 998.
        assert a[0] == 999 and b[0] in (998, 999)
        a, b = a[1:], b[1:]
    # Its zero-terminal-SNR table is made of differences of roundings.
    zero_snr = ours.noise.rescale_betas_zero_snr
    assert torch.allclose(a, b, rtol=0, atol=5e-3 if zero_snr else 2e-3)
    if hasattr(theirs, "sigmas"):
        tolerance = 5e-5 if zero_snr else 1e-5
        a, b = torch.tensor(ours.sigmas), theirs.sigmas.float()
        if isinstance(theirs, GivenNoise):  # each twice, and those between apart
            a, b = a[::2], b[::2]
        if len(a) < len(b):  # KDPM2's has each twice, and those between apart
            a, b = a[0:-1:2], b[0:-3:2]
        assert torch.allclose(a, b, rtol=tolerance, atol=0)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)


def steepest(sigmas: Sequence[float]) -> float:
    """By how much sigma falls in a step, except in that to 0."""
    return max((a / b for a, b in pairwise(sigmas) if b > 0), default=1.0)


@pytest.mark.parametrize(("name", "noise", "spacing", "ramp"), [*cases()])
def test_every_step(name: str, noise: str, spacing: str | None, ramp: str | None) -> None:
    ours, theirs = pair(name, NOISES[noise], spacing, ramp)
    for steps in STEPS:
        if name == "deis" and ramp is not None and steps == 1:
            continue  # there its only step goes nowhere
        set_both(ours, theirs, steps)
        if name in ("kdpm2-a", "deis") and steepest(ours.sigmas) > 200:
            continue  # what is left of differences of squares, or of large weights, in fp32
        check_schedule(ours, theirs, ramp)
        latents = normal(*SHAPE) * ours.init_noise_sigma
        worst = max(errors(name, ours, theirs, theirs.timesteps, latents))
        assert worst <= MODEL_TOLERANCE, steps


def test_every_sampler_has_a_reference() -> None:
    elsewhere = ("ddim", "dpm++-2s-a")  # test_ddim, test_k_diffusion
    assert [*REFERENCES] == [name for name in SCHEDULERS if name not in elsewhere]


def default_case(name: str) -> tuple[str | None, str | None]:
    """The sampler's own spacing, and Karras sigmas where it takes them."""
    spacings = REFERENCES[name].spacings
    return (SCHEDULERS[name].spacings[0] if spacings else None), REFERENCES[name].ramps[:2][-1]


# --- image-to-image -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ramp"),
    [(name, ramp) for name in REFERENCES for ramp in REFERENCES[name].ramps[:2]],
)
def test_loops_that_begin_later(name: str, ramp: str | None) -> None:
    """The part of the schedule that diffusers' image-to-image pipeline runs."""
    spacing, _ = default_case(name)
    for steps, skip in LATER:
        ours, theirs = pair(name, NOISES["epsilon"], spacing, ramp)
        theirs.set_timesteps(steps)
        ours.set_timesteps(steps, skip)
        original, noise = normal(*SHAPE, seed=2), normal(*SHAPE, seed=3)
        timesteps = theirs.timesteps[skip * theirs.order :]
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(skip * theirs.order)
        if name == "pndm":  # it would visit the second of the timesteps that are left once
            timesteps = torch.tensor(ours.timesteps)
        if name == "lms":  # it would take weights for derivatives that it does not have
            theirs.sigmas = theirs.sigmas[skip:]
            theirs.set_begin_index(0)
        latents = theirs.add_noise(original, noise, timesteps[:1])
        mine = ours.add_noise(original, noise, ours.timesteps[0])
        assert relative_error(mine, latents) <= MODEL_TOLERANCE
        worst = max(errors(name, ours, theirs, timesteps, latents))
        assert worst <= MODEL_TOLERANCE, (steps, skip)


@pytest.mark.filterwarnings("ignore:The `scale_model_input` function:UserWarning")
def test_a_later_beginning_is_where_the_references_go_astray() -> None:
    """What `test_loops_that_begin_later` has exceptions for."""
    theirs = REFERENCES["pndm"].make(NOISES["epsilon"], "leading", None)
    theirs.set_timesteps(10)
    assert theirs.timesteps.tolist()[:4] == [901, 801, 801, 701]
    # begun at 701, it steps to 601 twice and is then asked about 501 with latents of 601
    assert theirs.timesteps.tolist()[3:6] == [701, 601, 501]
    theirs = REFERENCES["lms"].make(NOISES["epsilon"], "leading", None)
    theirs.set_timesteps(10)
    theirs.set_begin_index(4)
    zero, derivative = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    moved = theirs.step(derivative, theirs.timesteps[4], zero).prev_sample.mean()
    due = theirs.sigmas[5] - theirs.sigmas[4]
    assert not torch.isclose(moved, due, rtol=0.5)


# --- whole denoising loops ----------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_whole_loops(name: str) -> None:
    """Each goes its own way, as told by its own timesteps."""
    spacing, ramp = default_case(name)
    ours, theirs = pair(name, NOISES["epsilon"], spacing, ramp)
    set_both(ours, theirs, 20)
    generators = seeded(), seeded()
    a = normal(*SHAPE) * ours.init_noise_sigma
    b = normal(*SHAPE) * theirs.init_noise_sigma
    for timestep in ours.timesteps:
        output = model(ours.scale_model_input(a, timestep), torch.tensor(timestep))
        a = ours.step(output, timestep, a, generators[0])
    extra = {"generator": generators[1]} if REFERENCES[name].draws else {}
    for timestep in theirs.timesteps:
        output = model(theirs.scale_model_input(b, timestep), timestep)
        b = theirs.step(output, timestep, b, **extra).prev_sample
    assert relative_error(a, b) <= RUN_TOLERANCE


# --- sigmas that diffusers does not offer -------------------------------------------------------


@pytest.mark.parametrize("sigmas", ["sgm-uniform", "simple", "ays"])
@pytest.mark.parametrize("name", [name for name in REFERENCES if SCHEDULERS[name].takes_sigmas])
def test_every_step_on_other_sigmas(name: str, sigmas: str) -> None:
    """The steps, with our sigmas in the place of Karras's."""
    noise = NOISES["epsilon"]
    ours = make_scheduler(name, noise, sigmas=sigmas)
    ours.set_timesteps(7)
    assert_steps_agree_on_the_sigmas_of(ours, name, noise)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler-a", {"sigmas": "karras"}),
        ("euler-a", {"sigmas": "beta", "timestep_spacing": "trailing"}),
        *(
            (name, {"timestep_spacing": spacing})
            for name in ("dpm++-2s", "dpm++-3s")
            for spacing in ("leading", "trailing")
        ),
    ],
)
def test_every_step_with_options_that_the_reference_lacks(name: str, options: Any) -> None:
    noise = NOISES["v_prediction"]
    ours = make_scheduler(name, noise, **options)
    twin = "euler" if name == "euler-a" else "dpm++-2m"
    same = make_scheduler(twin, noise, **options)
    for steps in STEPS:
        ours.set_timesteps(steps)
        same.set_timesteps(steps)
        assert ours.timesteps == same.timesteps
        assert ours.sigmas == same.sigmas
        assert_steps_agree_on_the_sigmas_of(ours, name, noise)


def assert_steps_agree_on_the_sigmas_of(ours: Any, name: str, noise: NoiseConfig) -> None:
    theirs = REFERENCES[name].make(noise, "linspace", None if name == "euler-a" else "karras")
    steps = ours.num_inference_steps
    sigmas = np.array(ours.sigmas)[:-1]
    if len(sigmas) > steps:  # two evaluations per step
        sigmas = sigmas[0::2]
    theirs._convert_to_karras = lambda in_sigmas, num_inference_steps=steps: sigmas
    theirs.set_timesteps(steps)
    if name == "euler-a":
        theirs.sigmas = torch.tensor(ours.sigmas)
    if name == "deis":
        theirs.sigmas[-1] = ours.sigmas[-1]
    theirs.set_begin_index(0)
    latents = normal(*SHAPE) * ours.init_noise_sigma
    assert max(errors(name, ours, theirs, theirs.timesteps, latents)) <= MODEL_TOLERANCE


def test_align_your_steps_is_the_published_table() -> None:
    """diffusers has it for ten steps, as sigmas and as whole timesteps."""
    ours = make_scheduler("euler", NOISES["epsilon"], sigmas="ays")
    ours.set_timesteps(10)
    assert ours.sigmas == pytest.approx(AysSchedules["StableDiffusionSigmas"], rel=1e-12)
    published = torch.tensor(AysSchedules["StableDiffusionTimesteps"])
    assert (torch.tensor(ours.timesteps) - published).abs().max() < 3


# --- third order, thresholding -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpm++-3m", "dpm++-3m-sde"])
def test_third_order_integrates_the_prediction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction of x_0 that is a parabola in -log(sigma), by quadrature in float64.

    Equations 9 and 18 of "DPM-Solver++" without the noise; of the curvature, the method takes half.
    """
    monkeypatch.setattr(dpmsolver_multistep, "draw_noise", lambda like, generators: 0 * like)
    speed = 2 if name.endswith("sde") else 1
    scheduler = make_scheduler(name, NOISES["sample"])
    scheduler.set_timesteps(20)
    lambdas = -np.log(np.array(scheduler.sigmas[:-1]))
    sample = torch.tensor([[0.4]], dtype=torch.float64)
    for i in range(19):
        here = lambdas[i].item()
        output = torch.full_like(sample, 0.7 - 0.3 * here + 0.2 * here**2)
        result = scheduler.step(output, scheduler.timesteps[i], sample)
        if i >= 2:
            scales = [math.sqrt(scheduler.sigmas[k] ** 2 + 1) for k in (i, i + 1)]
            points, weights = np.polynomial.legendre.leggauss(40)
            h = lambdas[i + 1] - here
            way = h * (points + 1) / 2
            prediction = output.item() + (0.4 * here - 0.3) * way + 0.5 * 0.2 * way**2
            integral = h / 2 * weights @ (speed * np.exp(speed * (way - h)) * prediction)
            expected = math.exp(-speed * h) * sample.item() * scales[0] + integral
            assert result.item() * scales[1] == pytest.approx(expected, rel=1e-10)
        sample = result


@pytest.mark.parametrize("highest", [1.0, 1.5])
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("dpm++-2m", DPMSolverMultistepScheduler),
        ("dpm++-2s", DPMSolverSinglestepScheduler),
        ("unipc", UniPCMultistepScheduler),
    ],
)
def test_thresholding(name: str, ours: Any, highest: float) -> None:
    noise = NOISES["epsilon"]
    options = (("thresholding", True), ("sample_max_value", highest))
    theirs = replace(REFERENCES[name], options=options).make(noise, "linspace", None)
    mine = ours(noise, thresholding=DynamicThresholding(highest=highest))
    set_both(mine, theirs, 8)
    assert max(errors(name, mine, theirs, theirs.timesteps, normal(*SHAPE))) <= MODEL_TOLERANCE


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("name", "ours"), [("unipc", UniPCMultistepScheduler), ("deis", DEISMultistepScheduler)]
)
def test_other_orders(name: str, ours: Any, order: int) -> None:
    noise = NOISES["v_prediction"]
    options = (("solver_order", order),)
    for steps in STEPS:
        theirs = replace(REFERENCES[name], options=options).make(noise, "linspace", None)
        mine = ours(noise, order=order)
        set_both(mine, theirs, steps)
        worst = max(errors(name, mine, theirs, theirs.timesteps, normal(*SHAPE)))
        assert worst <= MODEL_TOLERANCE, steps


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gamma_of_trajectory_consistency(eta: float) -> None:
    ours, theirs = make_scheduler("tcd", NOISES["epsilon"], eta=eta), REFERENCES["tcd"]
    theirs = theirs.make(NOISES["epsilon"], None, None)
    theirs.step = functools.partial(theirs.step, eta=eta)
    set_both(ours, theirs, 6)
    assert max(errors("tcd", ours, theirs, theirs.timesteps, normal(*SHAPE))) <= MODEL_TOLERANCE


def test_a_wrong_coefficient_is_noticed() -> None:
    for name, reference in REFERENCES.items():
        spacing, _ = default_case(name)
        ours, _ = pair(name, NOISES["epsilon"], spacing, None)
        other = reference.make(replace(NOISES["epsilon"], beta_end=0.0121), spacing, None)
        set_both(ours, other, 5)
        latents = normal(*SHAPE) * ours.init_noise_sigma
        found = list(errors(name, ours, other, other.timesteps, latents))
        assert found[1] > MODEL_TOLERANCE, name
