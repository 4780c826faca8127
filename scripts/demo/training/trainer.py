"""The training loop's common part: log, optimiser, averaged weights, state on disk, workers."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from scripts.demo.training.options import TrainingOptions
from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class Log:
    """Prints lines and appends them to the run's log."""

    def __init__(self, options: TrainingOptions, stage: str) -> None:
        self.path = options.run / "log.txt"
        self.stage = stage

    def __call__(self, text: str) -> None:
        """Write one line with the time and the stage in front."""
        if worker() > 0:
            return
        line = f"{time.strftime('%H:%M:%S')} {self.stage}: {text}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Trainer:
    """Models, their optimiser and averages, and the state that makes a stage resumable."""

    def __init__(
        self, options: TrainingOptions, stage: str, models: Mapping[str, nn.Module], steps: int
    ) -> None:
        self.options, self.stage, self.steps = options, stage, steps
        self.path = options.run / f"{stage}.pt"
        self.models = channels_last(nn.ModuleDict(models).to(options.device))
        self.averages = copy.deepcopy(self.models).requires_grad_(False)
        parameters = [p for p in self.models.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.log = Log(options, stage)
        self.started = self.saved = time.monotonic()
        if options.device == "cpu":
            for module in list(self.models.modules()):
                if isinstance(module, Attention | AutoencoderAttention):
                    module.attend = PlainAttention()
        if self.path.exists():
            state = torch.load(self.path, map_location=options.device, weights_only=True)
            self.models.load_state_dict(state["models"])
            self.averages.load_state_dict(state["averages"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            self.log(f"goes on at step {self.step} of {steps}")

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def minutes(self) -> float:
        """Minutes since this call began the stage."""
        return (time.monotonic() - self.started) / 60

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser; warms up, holds, and decays over the last third."""
        progress = self.step / self.steps
        rate = self.options.learning_rate * min(1.0, (self.step + 1) / 200, 3 * (1 - progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.averages.parameters())
            current: list[Tensor] = list(self.models.parameters())
            torch._foreach_lerp_(averages, current, 1 - decay)
        self.step += 1
        if time.monotonic() - self.saved > 120 or self.done:
            self.save()

    def _share_gradients(self) -> None:
        """Give every process the mean of all gradients."""
        if workers() == 1:
            return
        gradients = [p.grad for p in self.models.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / workers()
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self) -> None:
        """Write the state atomically."""
        self.saved = time.monotonic()
        if worker() > 0:
            return
        state = {
            "models": self.models.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_suffix(".part")
        torch.save(state, partial)
        partial.rename(self.path)


def workers() -> int:
    """Number of processes that share the batches."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def worker() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def channels_last(model: ModuleType) -> ModuleType:
    """Store a model's convolutions channels-last, which is the faster order in training."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class PlainAttention(nn.Module):
    """Attention as two matrix products, whose backward pass is the faster one on a CPU."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend: (..., L, D), (..., S, D) and (..., S, D) to (..., L, D)."""
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        return scores.softmax(-1).to(value.dtype) @ value


def autocast(options: TrainingOptions) -> torch.autocast:
    """bf16 wherever it is safe."""
    return torch.autocast(options.device.split(":")[0], torch.bfloat16)
