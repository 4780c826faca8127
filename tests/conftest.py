"""What all tests share. That this file is here also lets them import the helpers beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny import write_tiny

# The models of these tests are too small to be worth more than one thread.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the weights of the tiny models; not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")
