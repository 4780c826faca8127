"""The ways in which the same request is computed: weights that come and go, other numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdpy.optimizations.exact import streaming
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from support.compare import RUN_TOLERANCE, relative_error
from support.tasks import one_image, text2img

OTHER_WAYS: dict[str, dict[str, Any]] = {
    "streamed": {"streamed": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "both": {"streamed": True, "dtype": torch.bfloat16},
}
"""Fields of an execution."""


def assert_same_otherwise(
    session: Session, request: Request, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image of a request is the same in one of `OTHER_WAYS`, with and without faster kernels.

    All weights but those of the smallest layers come and go where they are streamed.
    """
    monkeypatch.setattr(streaming, "RESIDENT_BYTES", 3000)
    monkeypatch.setattr(streaming, "PIECE_BYTES", 20_000)
    expected, how = one_image(text2img(session, request)), OTHER_WAYS[way]
    for fast_kernels in (False, True):
        other = Session(session.source, execution=Execution(fast_kernels=fast_kernels, **how))
        error = relative_error(one_image(text2img(other, request)), expected)
        assert error <= (0.2 if "dtype" in how else RUN_TOLERANCE)
