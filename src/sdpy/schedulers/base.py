"""What the denoising loop asks of every sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the registry and the command line import this module without torch
    import torch
    from torch import Tensor


class Scheduler(Protocol):
    """A sampler: walks latents from noise to a picture, one prediction of the network at a time.

    Latents are (B, C, h, w) on any device. A scheduler serves one walk at a time, which visits the
    timesteps in order; `set_timesteps` begins a new one.
    """

    @property
    def timesteps(self) -> Tensor:
        """(n,) float or int64 on the CPU: what the network is told at each evaluation, in order."""

    @property
    def init_noise_sigma(self) -> float:
        """Deviation of the pure noise that the walk begins with."""

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan a walk of that many steps, its first ``skip`` left out, and forget the last walk.

        A step may take several evaluations of the network: ``timesteps`` may be longer.

        Raises:
            UsageError: the number of steps does not suit the sampler.
        """

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents as the network expects them at ``timestep``."""

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The latents after ``timestep``, given the network's prediction there.

        A sampler that adds noise draws it from ``generator``, on the CPU.
        """

    def add_noise(self, original: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents as they look at ``timestep``, a member of ``timesteps``."""
