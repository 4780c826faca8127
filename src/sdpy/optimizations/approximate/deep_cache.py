"""DeepCache: the UNet's deep layers are evaluated now and then, the outermost ones always."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.models.unet import skip_channels
from sdpy.models.unet_blocks import DownBlock2D, UpBlock2D
from sdpy.optimizations.approximate.base import replaced_forward


@dataclass(frozen=True)
class DeepCache:
    """Evaluate the whole UNet once, and only its outermost layers the next ``interval - 1`` times.

    These take what comes up from below from the last whole evaluation. Evaluations are counted,
    not steps: for a sampler that needs two a step (Heun, KDPM2) the same ``interval`` is half as
    many steps. The whole UNet is evaluated out of turn wherever the last result does not fit:
    where the batch is another one, as guidance begins or ends, and where ControlNets begin or
    cease to count. ControlNets steer the outermost layers each time, and what comes up from below
    as they did in the last whole evaluation.

    Attributes:
        interval: at least 1, at which every evaluation is whole.
        branch: number of the deepest skip that is computed each time, in the order in which they
            arise: 0 is that of the input convolution, used by the last layer on the way up; 1 adds
            the first ResNet with its transformer, and the last layer but one; and so on.

    Source: "DeepCache: Accelerating Diffusion Models for Free" (Ma et al., 2023), section 3.2,
    with the uniform schedule; branches are numbered as in the authors' package.
    """

    interval: int
    branch: int = 0

    def check(self, config: UNet2DConditionConfig) -> None:
        """Refuse an interval or a branch that cannot be; see `Approximation.check`."""
        if self.interval < 1:
            raise UsageError(f"DeepCache every {self.interval} evaluations: use 2 or more")
        last = len(skip_channels(config)) - 2  # below the deepest skip only the middle is left
        if not 0 <= self.branch <= last:
            raise UsageError(f"DeepCache branch {self.branch}: this UNet has 0 to {last}")

    @contextmanager
    def applied(self, unet: UNet2DConditionModel, seed: int) -> Iterator[None]:
        """Put a `CachedForward` in the place of the UNet's; see `Approximation.applied`."""
        with replaced_forward(unet, CachedForward(unet, self)):
            yield

    def facts(self) -> dict[str, str]:
        """Interval and branch; see `Approximation.facts`."""
        return {"DeepCache": f"{self.interval} branch {self.branch}"}


class CachedForward:
    """Stands in for a UNet's ``forward``, and remembers what last came up from its deep layers."""

    def __init__(self, unet: UNet2DConditionModel, settings: DeepCache) -> None:
        self.unet, self.interval, self.branch = unet, settings.interval, settings.branch
        self.plain = unet.forward
        self.deep: Tensor | None = None
        """(B, C, h, w), what the first of the outermost layers on the way up was given."""
        self.steered = False
        self.reused = 0

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
    ) -> Tensor:
        """See `UNet2DConditionModel.forward`."""
        steered = mid_residual is not None
        if (
            self.deep is not None
            and self.reused < self.interval - 1
            and len(self.deep) == len(sample)
            and self.steered == steered
        ):
            self.reused += 1
            time_emb = self.unet.embed_time(timestep.expand(len(sample)), timestep_cond)
            residuals = down_residuals or ()
            return self._outermost(self.deep, sample, time_emb, encoder_hidden_states, residuals)
        self.reused, self.steered = 0, steered
        return self._whole(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            down_residuals=down_residuals,
            mid_residual=mid_residual,
        )

    def _whole(self, *inputs: Tensor, **options: Any) -> Tensor:
        """The plain evaluation; what comes up from below is kept in passing."""
        block, i = _up_layers(self.unet)[-1 - self.branch]
        skip = skip_channels(self.unet.config)[self.branch]

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.deep = inputs[0][:, :-skip]  # the skip was joined to its end

        handle = block.resnets[i].register_forward_pre_hook(keep)
        try:
            return self.plain(*inputs, **options)
        finally:
            handle.remove()

    def _outermost(
        self,
        x: Tensor,
        sample: Tensor,
        time_emb: Tensor,
        context: Tensor,
        residuals: Sequence[Tensor],
    ) -> Tensor:
        """The outermost layers alone, given ``x`` from below; otherwise as the UNet's."""
        unet, count = self.unet, self.branch + 1
        skips = [unet.conv_in(sample)]
        down = skips[0]
        for down_block in cast(list[DownBlock2D], unet.down_blocks):
            if len(skips) < count:
                go_down = partial(_go_down, down_block, count - len(skips))
                down, level_skips = _call_as(down_block, go_down, down, time_emb, context)
                skips += level_skips
        if residuals:
            skips = [skip + r for skip, r in zip(skips, residuals[:count], strict=True)]
        following = len(_up_layers(unet))
        for up_block in cast(list[UpBlock2D], unet.up_blocks):
            following -= len(up_block.resnets)
            if following < count:
                go_up = partial(_go_up, up_block, count - following)
                x = _call_as(up_block, go_up, x, skips, time_emb, context)
        return unet.conv_out(F.silu(unet.conv_norm_out(x)))


def _call_as(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """``forward`` called as the block's own, with the hooks that may be on it."""
    with replaced_forward(block, forward):
        return block(*inputs)


def _go_down(
    block: DownBlock2D, count: int, x: Tensor, time_emb: Tensor, context: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """As `DownBlock2D.forward`, but for its first ``count`` skips alone; the result is the last."""
    skips = []
    for i, resnet in enumerate(islice(block.resnets, count)):
        x = resnet(x, time_emb)
        if block.attentions is not None:
            x = block.attentions[i](x, context)
        skips.append(x)
    if block.downsamplers is not None and len(skips) < count:
        x = block.downsamplers[0](x)
        skips.append(x)
    return x, skips


def _go_up(
    block: UpBlock2D, count: int, x: Tensor, skips: list[Tensor], time_emb: Tensor, context: Tensor
) -> Tensor:
    """As `UpBlock2D.forward`, but for its last ``count`` layers alone."""
    for i in range(max(len(block.resnets) - count, 0), len(block.resnets)):
        x = block.resnets[i](torch.cat([x, skips.pop()], dim=1), time_emb)
        if block.attentions is not None:
            x = block.attentions[i](x, context)
    if block.upsamplers is not None:
        x = block.upsamplers[0](x, size=skips[-1].shape[-2:])
    return x


def _up_layers(unet: UNet2DConditionModel) -> list[tuple[UpBlock2D, int]]:
    """The layers on the way up, one a skip, as their block and their number in it."""
    blocks = cast(list[UpBlock2D], unet.up_blocks)
    return [(block, i) for block in blocks for i in range(len(block.resnets))]
