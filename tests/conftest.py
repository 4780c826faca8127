"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Threads that wait by spinning take the cores from the tests of the other workers. OpenMP reads
# this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import HealthCheck, settings

from support.tiny import write_tiny

# The models of these tests are too small to be worth more than one thread.
torch.set_num_threads(1)

# The same examples in every run, however long a busy machine takes for them. `scripts.fuzz` is what
# searches for new ones.
settings.register_profile(
    "sdpy",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sdpy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests at real size to one worker: two of them at once would not fit into memory."""
    for item in items:
        if item.get_closest_marker("full_size"):
            item.add_marker(pytest.mark.xdist_group("full_size"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none.

    Random numbers that are drawn without a generator do not depend on the tests before.
    """
    torch.manual_seed(0)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the tests' own for what sdpy remembers."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDPY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the weights of the tiny models; not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")
