"""The names of the samplers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sdpy.errors import UsageError
from sdpy.samplers import SAMPLERS, find_sampler
from sdpy.schedulers import SCHEDULERS


def test_both_tables_have_the_same_names_in_the_same_order() -> None:
    assert list(SAMPLERS) == list(SCHEDULERS)


def test_no_name_means_two_samplers() -> None:
    names = [name for sampler in SAMPLERS.values() for name in sampler.aliases]
    names += SAMPLERS
    assert len({name.lower() for name in names}) == len(names)
    for key, sampler in SAMPLERS.items():
        for name in (key, *sampler.aliases):
            assert find_sampler(name) == (key, None)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # A1111's
        ("DDIM", ("ddim", None)),
        ("Euler", ("euler", None)),
        ("Euler a", ("euler-a", None)),
        ("Heun", ("heun", None)),
        ("LMS", ("lms", None)),
        ("LMS Karras", ("lms", "karras")),
        ("DPM2", ("kdpm2", None)),
        ("DPM2 a Karras", ("kdpm2-a", "karras")),
        ("DPM++ 3M SDE", ("dpm++-3m-sde", None)),
        ("DPM++ 2M SDE Exponential", ("dpm++-2m-sde", "exponential")),
        ("PLMS", ("pndm", None)),
        ("UniPC", ("unipc", None)),
        ("LCM", ("lcm", None)),
        ("DEIS", ("deis", None)),
        ("DPM++ 2M", ("dpm++-2m", None)),
        ("DPM++ 2M Karras", ("dpm++-2m", "karras")),
        ("DPM++ 2M Exponential", ("dpm++-2m", "exponential")),
        ("Euler SGM Uniform", ("euler", "sgm-uniform")),
        # diffusers'
        ("EulerDiscreteScheduler", ("euler", None)),
        ("eulerancestraldiscretescheduler", ("euler-a", None)),
        # ComfyUI's
        ("euler_ancestral", ("euler-a", None)),
        ("dpmpp_2m", ("dpm++-2m", None)),
    ],
)
def test_names_of_other_programs(label: str, expected: tuple[str, str | None]) -> None:
    assert find_sampler(label) == expected


@pytest.mark.parametrize("name", ["", "eular", "karras", "DDIM Karras", "euler karras beta"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown scheduler '{name}': use one of ddim, ddpm"):
        find_sampler(name)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, sdpy.samplers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
