"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny import write_tiny

# The models of these tests are too small to be worth more than one thread.
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the weights of the tiny models; not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")
