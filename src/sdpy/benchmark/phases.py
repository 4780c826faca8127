"""The phases of generating an image, each done as the pipelines do it.

A phase gets its model from a `Session`, so that whatever a session does to a model is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sdpy.benchmark import inputs
from sdpy.benchmark.arithmetic import count_flops
from sdpy.benchmark.timing import Evaluate, Phase
from sdpy.pipelines.denoise import denoise
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.plan import PlannedRequest, plan_request
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import shape_of_latents
from sdpy.pipelines.vae import decode, encode
from sdpy.runtime.devices import Placement, seeded_generator
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import finish
from sdpy.runtime.session import Session
from sdpy.runtime.workload import Workload
from sdpy.text.conditioning import (
    Conditioning,
    ConditioningSchedule,
    PromptConditioning,
    encode_prompts,
)
from sdpy.zoo.source import ModelSource

WITH_NEGATIVE_PROMPT = 2.0
"""A guidance scale at which the negative prompt is looked at, as it is at any but 1."""


@dataclass(frozen=True)
class BenchmarkTarget:
    """What is measured: a model, at an image's size, on its devices.

    Attributes:
        source: variant and files of the model.
        width, height: of the image, in pixels.
        placement: devices of the components.
        execution: how they compute.
        timestep_spacing, guidance_scale: None for the variant's own.
    """

    source: ModelSource
    width: int
    height: int
    placement: Placement = field(default_factory=Placement)
    execution: Execution = Execution()
    timestep_spacing: str | None = None
    guidance_scale: float | None = None

    def session(self) -> Session:
        """A session of its own for these models."""
        return Session(self.source, self.placement, self.execution)

    def request(self, steps: int) -> Request:
        """What to generate."""
        return Request(
            inputs.PROMPT,
            negative_prompt=inputs.NEGATIVE_PROMPT,
            steps=steps,
            seed=inputs.SEED,
            width=self.width,
            height=self.height,
            timestep_spacing=self.timestep_spacing,
            guidance_scale=self.guidance_scale,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(1, C, h, w).

        Raises:
            UsageError: the image's sides do not suit the model.
        """
        return shape_of_latents(self.source.variant, self.width, self.height)

    @property
    def work(self) -> float:
        """See `sdpy.runtime.workload.Workload.work`, of an image with guidance."""
        models = self.session().models()
        return Workload.of(models, self.latent_shape).work

    def count_flops(self) -> dict[str, int]:
        """FLOP of each of `PHASES`; see `sdpy.benchmark.arithmetic.count_flops`."""
        plan = plan_request(self.session(), _for_any_unet(self, self.request(1)))
        configs = {name: self.source.config(name) for name in self.source.files.weights}
        return count_flops(
            self.source.variant.with_configs(**configs),
            self.latent_shape[-2:],
            unet_batch=2 if plan.guided else 1,
        )


def _for_any_unet(target: BenchmarkTarget, request: Request) -> Request:
    """The request as the target's UNet can serve it: inpainting where it takes more channels."""
    if target.source.config("unet").in_channels == target.source.variant.vae.latent_channels:
        return request
    image = inputs.image(target.width, target.height)
    return replace(request, image=image, mask=torch.ones_like(image[:, :1]))


@contextmanager
def text_encoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """Prompts to what all text encoders make of them, (2, N), the negative prompt's first.

    The N numbers are the embeddings (T, D), then, where there is one, the pooled embedding.
    """
    variant = target.source.variant
    with target.session() as session, ExitStack() as loaded:
        request = _for_any_unet(target, target.request(1))
        request = replace(request, guidance_scale=WITH_NEGATIVE_PROMPT)
        (prompts,), _ = plan_request(session, request).prompts.steps()
        models = session.models()
        text_encoders = {
            name: loaded.enter_context(models.text_encoder(name)) for name in variant.text_encoders
        }

        def evaluate() -> Tensor:
            by_encoder = [
                encode_prompts(
                    [of_encoder.all],
                    session.headers.tokenizer,
                    text_encoder,
                    pad_id=variant.pad_ids.get(name),
                    skip_layers=variant.skip_layers,
                    final_norm=variant.final_norm,
                )[0]
                for (name, text_encoder), of_encoder in zip(
                    text_encoders.items(), prompts, strict=True
                )
            ]
            prompt, negative = (Conditioning.join(made) for made in zip(*by_encoder, strict=True))
            both = Conditioning.cat([negative, prompt]).inputs().values()
            return torch.cat([x.flatten(1) for x in both], dim=1).cpu()

        yield evaluate


@contextmanager
def unet_step(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """One step of the denoising loop; its result is what the UNet predicts, (B, C, h, w).

    Whatever is prepared for all steps together is done in the first.
    """
    config = target.source.config("unet")
    _, channels, height, width = shape = target.latent_shape
    beside = config.in_channels - channels
    predictions: list[Tensor] = []

    def remember(_module: nn.Module, _args: object, output: Tensor) -> None:
        predictions.append(output)

    with target.session() as session, session.models().unet() as unet:
        plan = plan_request(session, _for_any_unet(target, target.request(evaluations)))
        scheduler = plan.fresh_scheduler()
        negative, prompt = _conditionings(target, plan)
        start = InitialLatents(
            inputs.noise(shape) * scheduler.init_noise_sigma,
            inputs.conditioning((1, beside, height, width)) if beside else None,
        )
        unet.register_forward_hook(remember)
        steps = denoise(
            unet,
            scheduler,
            start,
            ConditioningSchedule((PromptConditioning((prompt,), negative),)),
            Guidance((plan.guidance_scale,)),
            generators=[seeded_generator(inputs.SEED)],
        )

        def evaluate() -> Tensor:
            predictions.clear()
            next(steps).latents.cpu()  # waits for a GPU
            return torch.cat(predictions).float().cpu()

        yield evaluate


def _conditionings(
    target: BenchmarkTarget, plan: PlannedRequest
) -> tuple[Conditioning, Conditioning]:
    """What stands for an encoded negative prompt and prompt, with the image's own sizes."""
    variant = target.source.variant
    length = variant.text_encoder.max_position_embeddings
    width = target.source.config("unet").cross_attention_dim
    negative, prompt = inputs.prompt_embeddings(length, width).chunk(2)
    if variant.pooled_dim is None:
        return Conditioning(negative), Conditioning(prompt)
    pooled = inputs.pooled_embeddings(variant.pooled_dim).chunk(2)
    return (
        Conditioning(negative, pooled[0], plan.negative_sizes),
        Conditioning(prompt, pooled[1], plan.sizes),
    )


@contextmanager
def vae_decoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """Latents of unit variance to an image (1, 3, H, W)."""
    latents = inputs.noise(target.latent_shape)
    with target.session() as session:
        models = session.models()
        with models.vae():
            yield lambda: finish(decode(models, latents))


@contextmanager
def vae_encoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """An image to the mean and deviation of its latents, (2, C, h, w)."""
    image = inputs.image(target.width, target.height)
    with target.session() as session:
        models = session.models()

        def evaluate() -> Tensor:
            encoded = finish(encode(models, image))
            return torch.cat([encoded.mean, encoded.std])

        with models.vae():
            yield evaluate


PHASES: dict[str, Callable[[BenchmarkTarget, int], Phase]] = {
    "text": text_encoding,
    "unet": unet_step,
    "decode": vae_decoding,
    "encode": vae_encoding,
}
"""Each takes the target, and how many evaluations there will be."""
