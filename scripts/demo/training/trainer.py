"""The training loop: optimiser, averaged weights, state on disk, workers, numbers that go wrong.

Nothing in a step waits for the device: losses are summed there, and a loss or gradient that is not
finite keeps the optimiser from changing the weights from that step on. The host looks when it logs.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from scripts.demo.training.clock import Clock
from scripts.demo.training.finite import NotFiniteError, first_not_finite
from scripts.demo.training.log import Log, worker, workers
from scripts.demo.training.options import TrainingOptions
from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention

ModuleType = TypeVar("ModuleType", bound=nn.Module)

LossAt = Callable[[int], Tensor]
"""Computes the loss of a training step, a scalar, from nothing but its number and the weights."""

MEASURED_STEPS = 10
"""Steps after which the speed is first measured; the first ones are slower."""

SAVE_SECONDS = 120
"""Time between two states on disk."""


class Trainer:
    """Models, their optimiser and averages, and the state that makes a stage resumable.

    Args:
        options: of the run.
        stage: name of the stage, of its state's file and of its share of the time.
        models: that are trained, by name.
        steps: number of training steps, if the time is not limited.
        log_every: steps between two lines of the log.
    """

    def __init__(
        self,
        options: TrainingOptions,
        stage: str,
        models: Mapping[str, nn.Module],
        steps: int,
        log_every: int = 100,
    ) -> None:
        self.options, self.stage, self.steps = options, stage, steps
        self.log_every = log_every
        self.path = options.run / f"{stage}.pt"
        self.models = prepare(nn.ModuleDict(models).to(options.device))
        self.averages = copy.deepcopy(self.models).requires_grad_(False)
        parameters = [p for p in self.models.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.log = Log(options, stage)
        self.clock = Clock(options, stage)
        self.saved = self.clock.elapsed
        self._first_step = 0
        self._measured = self.step, self.clock.elapsed
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        # 1 from the first step on whose loss or gradient is not finite, and the number of that
        # step. The fused optimiser reads the former on the device, and then does nothing.
        self._failed = torch.zeros((), device=options.device)
        self._failed_step = torch.full((), -1, device=options.device)
        if self.path.exists():
            state = torch.load(self.path, map_location=options.device, weights_only=True)
            self.models.load_state_dict(state["models"])
            self.averages.load_state_dict(state["averages"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = self._first_step = state["step"]
            self.steps = state["steps"] if self.clock.limit is not None else steps
            self.log(f"goes on at step {self.step} of {self.steps}")
        if options.compile:
            compile_networks(self.models)

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def minutes(self) -> float:
        """Minutes that the stage has taken."""
        return self.clock.elapsed / 60

    def train(self, loss_at: LossAt) -> Iterator[int]:
        """Train until all steps are done; yields the number of steps done after each of them.

        Raises:
            NotFiniteError: names the module whose output or gradient went wrong first.
        """
        self._plan()
        while not self.done:
            loss = loss_at(self.step)
            self.update(loss)
            self.note("loss", loss)
            if self.step % self.log_every == 0 or self.done:
                self._report(loss_at)
            if self.clock.elapsed - self.saved > SAVE_SECONDS or self.done:
                self._stop_at_failure(loss_at)
                self.save()
            yield self.step

    def note(self, name: str, value: Tensor) -> None:
        """Add a scalar to the numbers whose means the next line of the log tells."""
        before = self._sums.get(name)
        value = value.detach().float()
        self._sums[name] = value if before is None else before + value
        self._summed += name == "loss"

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser; warms up, holds, and decays over the last third."""
        progress = self.step / max(self.steps, 1)
        rate = self.options.learning_rate * min(1.0, (self.step + 1) / 200, 3 * (1 - progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self._share_gradients()
        norm = nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        wrong = ~torch.isfinite(loss.detach() + norm)
        first = wrong & (self._failed == 0)
        self._failed_step = torch.where(first, self.step, self._failed_step)
        self._failed = torch.maximum(self._failed, wrong.float())
        self.optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.averages.parameters())
            current: list[Tensor] = list(self.models.parameters())
            torch._foreach_lerp_(averages, current, 1 - decay)
        self.step += 1
        self._plan()

    def _plan(self) -> None:
        """Where the time is limited, plan as many steps as fit into it at the speed so far."""
        limit = self.clock.limit
        done = self.step - self._first_step
        if limit is None:
            return
        if done == 0:
            # Compiling and first calls are slow, and say nothing about the steps that follow.
            self.steps = max(self.steps, self.step + 2 * MEASURED_STEPS)
        elif done == MEASURED_STEPS:
            self._synchronize()
            self._measured = self.step, self.clock.elapsed
        elif done == 2 * MEASURED_STEPS or (done > MEASURED_STEPS and done % self.log_every == 0):
            self._synchronize()
            # The speed since the last plan: a stage may go on with other images.
            step, then = self._measured
            self._measured = self.step, self.clock.elapsed
            speed = (self.step - step) / max(self.clock.elapsed - then, 1e-9)
            left = int(max(limit - self.clock.elapsed, 0.0) * speed)
            if done == 2 * MEASURED_STEPS:
                self.log(f"{speed:.2f} steps a second, so {left} more in {limit:.0f} s")
            self.steps = self.step + left

    def _synchronize(self) -> None:
        if self.options.device_type == "cuda":
            torch.cuda.synchronize()

    def _report(self, loss_at: LossAt) -> None:
        """Log the means since the last line."""
        self._stop_at_failure(loss_at)
        means = {name: (total / self._summed).item() for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        told = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.log(f"step {self.step} of {self.steps}, {told}, {self.minutes:.1f} min")

    def _stop_at_failure(self, loss_at: LossAt) -> None:
        """Do the first step again that was not finite, and say which module it came from."""
        step = int(self._failed_step.item())
        if step < 0:
            return
        with torch.compiler.set_stance("force_eager"):
            place = first_not_finite(self.models, lambda: loss_at(step))
        raise NotFiniteError(
            f"{self.stage}: not finite in step {step}: {place}. The state of the last good step is "
            f"in {self.path.name}, if one was saved. Try --precision fp32, or a smaller "
            f"--learning-rate than {self.options.learning_rate:g}"
        )

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
        self.saved = self.clock.elapsed
        if worker() > 0:
            return
        state = {
            "models": self.models.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "steps": self.steps,
        }
        partial = self.path.with_suffix(".part")
        torch.save(state, partial)
        partial.rename(self.path)
        self.clock.save()


class DeviceError(Exception):
    """The device cannot be used."""


def prepare_device(options: TrainingOptions) -> None:
    """Choose how a GPU computes, for the whole process.

    Raises:
        DeviceError: there is no such device.
    """
    if options.device_type != "cuda":
        return
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {options.device}: torch finds no GPU here")
    # The networks attend without torch's fused kernels (`prepare`), the text encoder in fp32. None
    # of the others may be chosen: gradients of some were not finite in bf16.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    # All steps of a stage have the same few shapes.
    torch.backends.cudnn.benchmark = True


def free_memory(options: TrainingOptions) -> None:
    """Give the memory of a stage that is over back to the device."""
    gc.collect()
    if options.device_type == "cuda":
        torch.cuda.empty_cache()


def prepare(model: ModuleType) -> ModuleType:
    """Make a network ready for training: channels-last, its norms and softmax in fp32.

    Under autocast these would be computed in bf16 on some devices. Attention becomes two matrix
    products, whose backward pass is exact everywhere and the faster one on a CPU.
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(_in_float32)
        if isinstance(module, Attention | AutoencoderAttention):
            module.attend = PlainAttention()
    return channels_last(model)


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def channels_last(model: ModuleType) -> ModuleType:
    """Store a model's convolutions channels-last, which is the faster order in training."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def compile_networks(models: nn.ModuleDict) -> None:
    """Compile the networks in place: an autoencoder's two halves, of others the whole."""
    for model in models.values():
        parts = [getattr(model, name, None) for name in ("encoder", "decoder")]
        halves = [part for part in parts if isinstance(part, nn.Module)]
        for part in halves or [model]:
            part.compile()


class PlainAttention(nn.Module):
    """Attention as two matrix products, with its softmax in fp32."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend: (..., L, D), (..., S, D) and (..., S, D) to (..., L, D)."""
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        return scores.float().softmax(-1).to(value.dtype) @ value


def autocast(options: TrainingOptions) -> torch.autocast:
    """bf16 for convolutions and products, unless the options ask for fp32."""
    enabled = options.precision == "bf16"
    return torch.autocast(options.device_type, torch.bfloat16, enabled=enabled)


def full_precision(options: TrainingOptions) -> torch.autocast:
    """fp32 for what is inside `autocast`."""
    return torch.autocast(options.device_type, enabled=False)
