"""The names of the samplers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdpy.errors import UsageError
from sdpy.schedulers import (
    SCHEDULERS,
    SIGMAS,
    NoiseConfig,
    SchedulerInfo,
    find_scheduler,
    make_scheduler,
)
from sdpy.schedulers.registry import SIGMA_RAMPS, SIGMA_SCHEDULES
from sdpy.schedulers.sigmas import RAMPS, SCHEDULES
from sdpy.schedulers.spacing import SPACINGS


def test_the_names_of_sigmas_are_those_of_the_functions() -> None:
    assert tuple(RAMPS) == SIGMA_RAMPS
    assert tuple(SCHEDULES) == SIGMA_SCHEDULES


def test_no_name_means_two_samplers() -> None:
    names = [name for info in SCHEDULERS.values() for name in info.aliases]
    names += SCHEDULERS
    assert len({name.lower() for name in names}) == len(names)
    for key, info in SCHEDULERS.items():
        for name in (key, *info.aliases):
            assert find_scheduler(name) == (key, None)


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
    assert find_scheduler(label) == expected


@pytest.mark.parametrize("name", ["", "eular", "karras", "DDIM Karras", "euler karras beta"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown scheduler '{name}': .*use one of ddim, ddpm"):
        find_scheduler(name)


@pytest.mark.parametrize("module", ["sdpy.schedulers", "sdpy.schedulers.registry"])
def test_the_registry_imports_neither_torch_nor_numpy(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_is_imported_when_a_scheduler_is_made() -> None:
    code = (
        "import sys; from sdpy.schedulers import NoiseConfig, make_scheduler\n"
        "make_scheduler('ddim', NoiseConfig())\n"
        "sys.exit('sdpy.schedulers.unipc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MADE_UP = """
from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler

class ShrinkingScheduler(VarianceExplodingScheduler):
    def __init__(self, noise, *, share, **options):
        super().__init__(noise, **options)
        self.share = share

    def _advance(self, index, predicted_x0, predicted_noise, sample, generator):
        return self.share * predicted_x0
"""


def test_a_new_sampler_is_one_file_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_up_sampler.py").write_text(MADE_UP)
    monkeypatch.syspath_prepend(tmp_path)
    row = SchedulerInfo(
        "made_up_sampler:ShrinkingScheduler",
        "predicts, then shrinks",
        label="Shrinking",
        arguments={"share": 0.5},
        aliases=("Shrinking",),
    )
    monkeypatch.setitem(SCHEDULERS, "shrink", row)
    assert find_scheduler("Shrinking Karras") == ("shrink", "karras")
    with pytest.raises(UsageError, match="use one of .*, tcd, shrink$"):
        find_scheduler("grow")
    scheduler = make_scheduler("Shrinking Karras", NoiseConfig(prediction_type="sample"))
    scheduler.set_timesteps(3)
    prediction = torch.ones(1, 4, 2, 2)
    end = prediction
    for timestep in scheduler.timesteps:
        end = scheduler.step(prediction, timestep, end)
    assert torch.equal(end, 0.5 * prediction)


def test_every_row_names_a_class() -> None:
    for info in SCHEDULERS.values():
        module, _, name = info.target.partition(":")
        assert info.load_class().__name__ == name
        assert info.load_class().__module__ == module
        assert set(info.spacings) <= set(SPACINGS)
    assert len(SIGMAS) == len(set(SIGMAS))
