"""Steps of the denoising loop that a GPU has captured, and does again without the program.

Everything that a step does on the device is one graph: bringing the latents to the UNet's scale,
ControlNets, UNet, guidance, the sampler's step, putting back what inpainting keeps, looking for
numbers that are not finite. What differs from step to step are a row of numbers and the UNet's
embedding of the time, which are copied into their places before each launch, and the noise.

The sampler's step is a sum, as `sdpy.schedulers.linear` says: the latents, predictions and noise of
the last evaluations lie in a ring, and each row has their weights. Samplers that are not linear,
and loops that do only some of the scheduler's steps, take theirs outside of the graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sdpy.errors import is_shortage
from sdpy.optimizations.exact.cuda_graphs import CudaGraphs, PromptProducts, Work, addresses
from sdpy.pipelines.controlnet import Control, LoadedControl
from sdpy.pipelines.finite_check import FiniteCheck, FiniteSteps
from sdpy.pipelines.loop import Loop
from sdpy.runtime.fallbacks import Fallback, Notice
from sdpy.schedulers.linear import LinearSteps, linear_steps
from sdpy.schedulers.noise import draw_noise
from sdpy.text.conditioning import Conditioning

Inputs = TypeVar("Inputs")


@dataclass(frozen=True, eq=False)
class Row:
    """The numbers of a step, as parts of one tensor.

    Attributes:
        weights: (3, W, 1, 1, 1, 1) of what lies in each slot of the ring.
        slot: (1,), the number of the slot that is this evaluation's.
        input_scale: (1,), brings the latents to the UNet's scale.
        clean, noisy: (1,), factors of what inpainting keeps, and of its noise.
        timestep: (1,).
        scale: (B, 1, 1, 1), of guidance.
    """

    weights: Tensor
    slot: Tensor
    input_scale: Tensor
    clean: Tensor
    noisy: Tensor
    timestep: Tensor
    scale: Tensor

    @staticmethod
    def length(window: int, batch: int) -> int:
        """How many numbers a row has."""
        return 3 * window + 5 + batch

    @classmethod
    def of(cls, numbers: Tensor, window: int) -> Row:
        """The parts of ``numbers`` (`length`,) float32."""
        weights, single, scale = numbers.tensor_split((3 * window, 3 * window + 5))
        slot, input_scale, clean, noisy, timestep = (single[i : i + 1] for i in range(5))
        return cls(
            weights.view(3, window, 1, 1, 1, 1),
            slot,
            input_scale,
            clean,
            noisy,
            timestep,
            scale.view(-1, 1, 1, 1),
        )


def rows_of(loop: Loop, table: LinearSteps | None) -> Tensor:
    """The numbers of all of a scheduler's steps, (N, `Row.length`) float32 on the loop's device."""
    count, device = loop.total, loop.latents.device
    window = 0 if table is None else table.window
    plain = torch.ones(count, 3 * window + 4)
    if table is not None:
        # Slot s has what was seen (i - s) mod W evaluations before evaluation i.
        step, slot = torch.arange(count)[:, None], torch.arange(window)
        back = (step - slot) % window  # (N, W)
        by_slot = table.weights.gather(2, back[:, None].expand(-1, 3, -1))
        slots = (step % window).double()
        plain = torch.cat([by_slot.flatten(1), slots, table.scales[:, None], table.known], dim=1)
    guided = torch.tensor(loop.is_guided, device=device)[:, None]
    scales = torch.where(guided, loop.scale.view(1, -1), torch.ones_like(loop.scale.view(1, -1)))
    return torch.cat([plain.float().to(device), loop.timesteps.float()[:, None], scales], dim=1)


@dataclass(frozen=True, eq=False)
class LoopBuffers:
    """Tensors of a kind of loop that stay where they are in memory.

    Attributes:
        numbers: (`Row.length`,) of the step.
        row: their parts.
        latents: (B, C, h, w) float32, before a step and then after it. Where the sampler's step is
            taken outside, they are at the UNet's scale already, and stay.
        ring: (3, W, B, C, h, w): latents, predictions and noise of the last W evaluations; None
            where the sampler's step is taken outside.
        prediction: (B, C, h, w) float32, what guidance made of the UNet's in a step.
        finite: counts steps.
        loop: what the loop gives for all steps, and parts of the row.
        steps: those that were captured, by what distinguishes them.
    """

    numbers: Tensor
    row: Row
    latents: Tensor
    ring: Tensor | None
    prediction: Tensor
    finite: FiniteSteps
    loop: Loop
    steps: dict[Hashable, CapturedStep] = field(default_factory=dict)

    @classmethod
    def of(cls, loop: Loop, window: int) -> LoopBuffers:
        """Places for a loop, and for all of its kind."""
        latents = loop.latents
        numbers = latents.new_zeros(Row.length(window, len(latents)))
        row = Row.of(numbers, window)
        own = replace(
            loop,
            beside=_placed(loop.beside),
            known=_placed(loop.known),
            weights=_placed(loop.weights),
            scale=row.scale,
            timesteps=row.timestep,
            is_guided=(True,),
            steps=range(1),
            generators=(),
            controls=(),
            conditionings=(),
            embeddings=(),
        )
        return cls(
            numbers=numbers,
            row=row,
            latents=torch.zeros_like(latents),
            ring=latents.new_zeros(3, window, *latents.shape) if window else None,
            prediction=torch.zeros_like(latents),
            finite=FiniteSteps.on(latents.device),
            loop=own,
        )

    @staticmethod
    def kind(loop: Loop, window: int) -> Hashable:
        """What loops have in common that take turns in the same places."""
        kept = (loop.latents, loop.beside, loop.known, loop.weights)
        return window, loop.rescale, *map(_kind, kept)

    def begin(self, loop: Loop) -> None:
        """Take what a loop of the kind gives."""
        self.latents.copy_(loop.latents)
        for place, given in (
            (self.loop.beside, loop.beside),
            (self.loop.known, loop.known),
            (self.loop.weights, loop.weights),
        ):
            _write(place, given)
        if self.ring is not None:
            self.ring.zero_()
        self.finite.begin()


@dataclass(eq=False)
class CapturedStep:
    """A step with all that it reads.

    Attributes:
        loop: of one step, whose tensors stay in place.
        launch: does the step.
        shown: the conditioning that lies in the place of the loop's own.
        products: what is kept of that; None where nothing was captured.
        addresses: of the weights, when it was captured.
    """

    loop: Loop
    launch: Work
    shown: Conditioning
    products: PromptProducts | None
    addresses: tuple[int, ...]

    def show(self, loop: Loop, i: int) -> None:
        """Take what another loop gives in its step ``i``."""
        conditioning = loop.conditionings[i]
        if self.shown is not conditioning and self.products is not None:
            _write(self.loop.conditionings[0], conditioning)
            self.products.renew()
            self.shown = conditioning
        self.loop.embeddings[0].copy_(loop.emb(i))


class CapturedSteps:
    """Does the steps of a loop by launching graphs, which it captures where there are none yet.

    Args:
        loop: the loop.
        graphs: of its UNet.
        finite: looks at its results.
    """

    def __init__(self, loop: Loop, graphs: CudaGraphs, finite: FiniteCheck) -> None:
        self.loop, self.graphs, self.finite = loop, graphs, finite
        whole = loop.steps == range(loop.total)
        self.table = linear_steps(loop.scheduler) if whole else None
        window = 0 if self.table is None else self.table.window
        kind = LoopBuffers.kind(loop, window)
        self.buffers: LoopBuffers = graphs.keep(kind, lambda: LoopBuffers.of(loop, window))
        self.buffers.begin(loop)
        finite.steps = self.buffers.finite
        self.rows = rows_of(loop, self.table)
        self.latents = loop.latents
        self.captures = True
        self.seen: set[Hashable] = set()
        self.notices: list[Notice] = []
        self.fallbacks = [
            Fallback("doing each step without a CUDA graph from here on", self._stop_capturing)
        ]

    def before(self, i: int) -> None:
        """Draw the noise of step ``i``, which can be done once only."""
        table, buffers = self.table, self.buffers
        if table is None or buffers.ring is None:
            timestep = self.loop.scheduler.timesteps[i]
            buffers.latents.copy_(self.loop.scheduler.scale_model_input(self.latents, timestep))
        elif table.draws[i]:
            noise = draw_noise(buffers.latents, self.loop.generators)
            buffers.ring[2, i % table.window].copy_(noise)

    def run(self, i: int) -> None:
        """Do step ``i``; changes nothing before it is done."""
        self.buffers.numbers.copy_(self.rows[i])
        step = self._step(i)
        step.show(self.loop, i)
        step.launch()

    def after(self, i: int) -> Tensor:
        """The latents after step ``i``."""
        if self.table is None:
            prediction = self.buffers.prediction.clone()
            self.latents = self.loop.step(i, prediction, self.latents)
            self.finite.look_at(self.latents)
            return self.latents
        self.finite.counted()
        return self.buffers.latents.clone()

    def take_notices(self) -> Iterator[Notice]:
        """What the user should know."""
        while self.notices:
            yield self.notices.pop(0)

    def _step(self, i: int) -> CapturedStep:
        """What does step ``i``."""
        loop, steps = self.loop, self.buffers.steps
        conditioning, emb = loop.conditionings[i], loop.emb(i)
        steering = [getattr(one, "model", None) for one in loop.controls]
        networks = [one for one in (loop.unet, *steering) if isinstance(one, nn.Module)]
        key = (
            _kind(conditioning) if self.captures else id(conditioning),
            emb.shape,
            *(
                (id(network), _kind(loaded), *_counting(loaded, i, loop.total))
                for network, loaded in zip(steering, loop.controls, strict=True)
            ),
        )
        known = steps.get(key)
        if known is None or (key not in self.seen and known.addresses != addresses(networks)):
            controls = [_as_in_step(one, i, loop.total) for one in loop.controls]
            known = steps[key] = self._capture(conditioning, emb, controls, networks)
        if key not in self.seen:
            for place, given in zip(known.loop.controls, loop.controls, strict=True):
                _write(place, given)
            self.seen.add(key)
        return known

    def _capture(
        self,
        conditioning: Conditioning,
        emb: Tensor,
        controls: list[LoadedControl],
        networks: list[nn.Module],
    ) -> CapturedStep:
        buffers = self.buffers
        one = replace(
            buffers.loop,
            # What layers keep of a prompt, they know by the tensor that it is in.
            conditionings=(_placed(conditioning) if self.captures else conditioning,),
            embeddings=(emb.clone(),),
            controls=[_placed(control) for control in controls],
        )
        work = partial(_do, buffers, one)
        launch: Work = work
        products: PromptProducts | None = None
        if self.captures:
            finite = buffers.finite
            try:
                launch = self.graphs.capture(work, (buffers.latents, finite.going, finite.done))
            except Exception as error:
                if is_shortage(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
                told = f"a step cannot be captured as a CUDA graph ({reason}): going on without"
                self.notices.append(Notice(told))
                self._stop_capturing()
                return self._capture(conditioning, emb, controls, networks)
            prompt = one.conditionings[0].encoder_hidden_states
            products = PromptProducts(networks, prompt)
        return CapturedStep(one, launch, conditioning, products, addresses(networks))

    def _stop_capturing(self) -> None:
        """Drop all graphs, and do without any for the rest of the loop."""
        self.captures = False
        self.buffers.steps.clear()
        self.graphs.clear()
        self.seen.clear()


def _do(buffers: LoopBuffers, loop: Loop) -> None:
    """All that a step does on the device; ``loop`` has a single one."""
    row, latents = buffers.row, buffers.latents
    sample = (latents * row.input_scale).to(loop.unet.dtype)
    prediction = loop.guide(0, loop.predict(0, sample))
    if buffers.ring is None:
        buffers.prediction.copy_(prediction)
        return
    slot = row.slot.long()
    for kept, new in zip(buffers.ring, (latents, prediction), strict=False):
        kept.index_copy_(0, slot, new[None])
    result = (row.weights * buffers.ring).sum(dim=(0, 1))
    known = loop.known
    if known is not None:
        around = row.clean * known.latents + row.noisy * known.noise
        result = known.mask * result + (1 - known.mask) * around
    buffers.finite.count(result)
    latents.copy_(result)


# Controls: which of them count is decided when a step is captured


def _of(loaded: LoadedControl) -> tuple[Control, ...]:
    """The controls of a network."""
    return getattr(loaded, "controls", None) or (loaded.control,)  # type: ignore[union-attr]


def _counting(loaded: LoadedControl, i: int, total: int) -> Iterator[Hashable]:
    """What tells steps apart of a network's controls."""
    for one in _of(loaded):
        yield one.scale, one.control_type, one.counts(i, total)


def _as_in_step(loaded: LoadedControl, i: int, total: int) -> LoadedControl:
    """The same for a loop of one step, in which those controls count that do so in step ``i``."""

    def changed(one: Control) -> Control:
        start, end = (0.0, 1.0) if one.counts(i, total) else (1.0, 1.0)
        return replace(one, start=start, end=end)

    changes: dict[str, Any] = {}
    for name, value in vars(loaded).items():
        if isinstance(value, Control):
            changes[name] = changed(value)
        elif isinstance(value, tuple) and all(isinstance(one, Control) for one in value):
            changes[name] = tuple(map(changed, value))
    return replace(loaded, **changes)


# What a loop gives: tensors, or dataclasses and lists of such


def _tensors(x: Any) -> Iterator[Tensor]:
    """All tensors in it, but those of what a control is shown, of which its network's are used."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for one in x:
            yield from _tensors(one)
    elif is_dataclass(x) and not isinstance(x, Control):
        for one in fields(x):
            yield from _tensors(getattr(x, one.name))


def _kind(x: Any) -> Hashable:
    """Shapes and dtypes of its tensors."""
    return tuple((one.shape, one.dtype) for one in _tensors(x))


def _placed(x: Inputs) -> Inputs:
    """The same with copies of its tensors."""
    if isinstance(x, Tensor):
        return cast(Inputs, x.clone())
    if isinstance(x, list | tuple):
        return cast(Inputs, type(x)(_placed(one) for one in x))
    if is_dataclass(x) and not isinstance(x, Control | type):
        changed = {one.name: _placed(getattr(x, one.name)) for one in fields(x)}
        return cast(Inputs, replace(x, **changed))
    return x


def _write(place: Any, given: Any) -> None:
    """Copy the tensors of ``given`` into those of ``place``."""
    for tensor, new in zip(_tensors(place), _tensors(given), strict=True):
        if tensor is not new:
            tensor.copy_(new)
