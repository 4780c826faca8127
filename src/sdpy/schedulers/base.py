"""What the denoising loop asks of every scheduler. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Scheduler(Protocol):
    """Applies a sampler: leads latents from noise to an image, one prediction at a time.

    Latents are (B, C, h, w) in any floating-point dtype on any device, one row per image. What
    happens to an image does not depend on the others in the batch. A scheduler serves one
    denoising loop at a time, which visits the timesteps in order; `set_timesteps` starts a new one.

    Nothing here waits for the device: all coefficients are Python numbers, which are computed when
    the timesteps are set, and no method reads a tensor's values back.
    """

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is told at each evaluation, in order. Fractions are allowed."""

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the pure noise that the denoising loop starts from."""

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan a denoising loop and forget the last one.

        Args:
            num_inference_steps: number of steps. A step may take several evaluations of the
                network, so ``timesteps`` may be longer.
            skip: number of steps to leave out at the start, as image-to-image does.

        Raises:
            UsageError: the number of steps does not suit the sampler.
        """

    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor:
        """The latents as the network expects them at ``timestep``, a member of ``timesteps``."""

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[Generator] | None = None,
    ) -> Tensor:
        """The latents after ``timestep``, given the network's prediction there.

        Args:
            model_output: the prediction, of ``sample``'s shape.
            timestep: a member of ``timesteps``.
            sample: the latents before.
            generators: one CPU generator per image, of which a sampler that adds noise draws that
                image's noise. Samplers that add none leave them alone.

        Raises:
            ValueError: the sampler adds noise, and there is not one generator per image.
        """

    def add_noise(self, original: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """Clean latents as noisy as they are at ``timestep``, a member of ``timesteps``."""


def index_for_timestep(timesteps: Sequence[float], timestep: float, expected: int) -> int:
    """Index of ``timestep``: ``expected`` if it is there, because a timestep may occur twice.

    Raises:
        ValueError: ``timestep`` is not a member of ``timesteps``.
    """
    if expected < len(timesteps) and timesteps[expected] == timestep:
        return expected
    return timesteps.index(timestep)
