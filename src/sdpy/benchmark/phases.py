"""The phases of painting a picture, each done as the pipelines do it.

A phase loads its model through `Components`, so that whatever these do to a model is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpy.benchmark import inputs
from sdpy.benchmark.arithmetic import count_flops
from sdpy.benchmark.timing import Evaluate, Phase
from sdpy.models import UNet2DConditionModel
from sdpy.pipelines import Components, Execution, Settings
from sdpy.pipelines.denoise import Walk, denoise
from sdpy.pipelines.paint import (
    effective_guidance_scale,
    latent_shape,
    plan,
    sees_negative_prompt,
    tokenize,
)
from sdpy.pipelines.vae import decode, encode
from sdpy.runtime.devices import Placement, seeded_generator
from sdpy.text.prompts import PromptEmbeddings, encode_prompt
from sdpy.zoo.recognise import Recognised


@dataclass(frozen=True)
class BenchmarkTarget:
    """What is measured: a model, at a picture's size, on its devices.

    Attributes:
        model: variant and files.
        width, height: of the picture, in pixels.
        placement: devices of the models.
        execution: how they compute.
        timestep_spacing: None for the variant's own.
    """

    model: Recognised
    width: int
    height: int
    placement: Placement = field(default_factory=Placement)
    execution: Execution = Execution()
    timestep_spacing: str | None = None

    def components(self, *keep: str) -> Components:
        """The models, of which those that are named stay loaded once they are."""
        return Components(
            variant=self.model.variant,
            files=self.model.files,
            placement=self.placement,
            execution=self.execution,
            keep=frozenset(keep),
        )

    def settings(self, steps: int) -> Settings:
        """What to paint."""
        return Settings(
            prompt=inputs.PROMPT,
            negative_prompt=inputs.NEGATIVE_PROMPT,
            steps=steps,
            seed=inputs.SEED,
            timestep_spacing=self.timestep_spacing,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(1, C, h, w)."""
        return latent_shape(self.components(), self.width, self.height)

    def check_size(self) -> None:
        """Find out whether the picture's sides suit; the files need not be there yet.

        Raises:
            UsageError: they do not.
        """
        _ = self.latent_shape

    def count_flops(self) -> dict[str, int]:
        """FLOP of each of `PHASES`; see `sdpy.benchmark.arithmetic.count_flops`."""
        components = self.components()
        return count_flops(
            components.variant.text_encoder,
            components.unet_config,
            components.vae_config,
            self.latent_shape[-2:],
            unet_batch=1 + sees_negative_prompt(components, self.settings(1)),
        )


@contextmanager
def text_encoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """Prompts to embeddings (2, T, D), the negative prompt's first."""
    components, settings = target.components(), target.settings(1)
    with components.text_encoder() as text_encoder:

        def evaluate() -> Tensor:
            embeddings = encode_prompt(
                *tokenize(components, settings),
                components.tokenizer,
                text_encoder,
                pad_id=components.variant.pad_id,
            )
            return torch.cat([embeddings.negative, embeddings.prompt]).cpu()

        yield evaluate


@contextmanager
def unet_step(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """One step of the denoising loop; its result is what the UNet predicts, (B, C, h, w).

    Whatever is prepared for all steps together is done in the first.
    """
    components, settings = target.components(), target.settings(evaluations)
    config, text = components.unet_config, components.variant.text_encoder
    negative, prompt = inputs.prompt_embeddings(
        text.max_position_embeddings, config.cross_attention_dim
    ).chunk(2)
    scheduler = plan(components, settings)
    _, channels, height, width = shape = target.latent_shape
    beside = config.in_channels - channels
    walk = Walk(
        inputs.noise(shape) * scheduler.init_noise_sigma,
        inputs.conditioning((1, beside, height, width)) if beside else None,
    )
    predictions: list[Tensor] = []
    with components.unet() as unet:

        def remember(_module: UNet2DConditionModel, _args: object, output: Tensor) -> None:
            predictions.append(output)

        unet.register_forward_hook(remember)
        steps = denoise(
            unet,
            scheduler,
            walk,
            PromptEmbeddings(prompt, negative),
            guidance_scale=effective_guidance_scale(components, settings),
            generator=seeded_generator(settings.seed),
        )

        def evaluate() -> Tensor:
            predictions.clear()
            next(steps).latents.cpu()  # waits for a GPU
            return torch.cat(predictions).float().cpu()

        yield evaluate


@contextmanager
def vae_decoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """Latents of unit variance to a picture (1, 3, H, W)."""
    components, latents = target.components("vae"), inputs.noise(target.latent_shape)
    with components.vae():
        yield lambda: decode(components, latents)


@contextmanager
def vae_encoding(target: BenchmarkTarget, evaluations: int) -> Iterator[Evaluate]:
    """A picture to the mean and deviation of its latents, (2, C, h, w)."""
    components, picture = target.components("vae"), inputs.image(target.width, target.height)

    def evaluate() -> Tensor:
        encoded = encode(components, picture)
        return torch.cat([encoded.mean, encoded.std])

    with components.vae():
        yield evaluate


PHASES: dict[str, Callable[[BenchmarkTarget, int], Phase]] = {
    "text": text_encoding,
    "unet": unet_step,
    "decode": vae_decoding,
    "encode": vae_encoding,
}
"""Each takes the target, and how many evaluations there will be."""
