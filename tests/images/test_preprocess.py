"""Maps made of images."""

from __future__ import annotations

import sys

import pytest
import torch

from sdpy.errors import UsageError
from sdpy.images.preprocess import canny
from sdpy.images.tensors import image_to_tensor, tensor_to_image
from support.tiny import random_image


def square(level: float) -> torch.Tensor:
    image = torch.full((1, 3, 24, 40), -1.0)
    image[..., 6:18, 10:30] = level
    return image


def test_edges_are_where_the_square_ends() -> None:
    cv2 = pytest.importorskip("cv2")
    edges = canny(square(1.0))
    assert edges.shape == (1, 3, 24, 40)
    assert edges.dtype == torch.float32
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    rows, columns = edges[0, 0].nonzero().T
    assert {rows.min().item(), rows.max().item()} <= {5, 6, 17, 18}
    assert {columns.min().item(), columns.max().item()} <= {9, 10, 29, 30}
    assert edges[0, 0, 8:16, 12:28].sum() == 0
    assert cv2.__version__


def test_thresholds() -> None:
    pytest.importorskip("cv2")
    faint = square(-0.8)
    assert canny(faint).sum() == 0
    assert canny(faint, 10, 20).sum() > 0
    with pytest.raises(UsageError, match="low threshold 30 is above the high one, 20"):
        canny(faint, 30, 20)


def test_the_edges_are_opencv_s_of_the_8_bit_image() -> None:
    cv2 = pytest.importorskip("cv2")
    np = pytest.importorskip("numpy")
    image = tensor_to_image(random_image(64, 48) * 1.5)
    expected = cv2.Canny(np.asarray(image), 20, 60)
    ours = canny(image_to_tensor(image), 20, 60)
    assert 0 < ours.sum()
    assert np.array_equal(ours[0, 1].numpy() * 255, expected)


def test_without_opencv_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"pip install 'sdpy\[canny\]'"):
        canny(square(1.0))
