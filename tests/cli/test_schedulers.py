"""``sdpy schedulers`` and the options that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sdpy.schedulers import SCHEDULERS, SIGMAS


def test_every_name_is_listed(sdpy: Any) -> None:
    result = sdpy("schedulers")
    assert (result.code, result.err) == (0, "")
    starts = [line.split()[0] for line in result.out.splitlines() if line[:1].strip()]
    assert starts[:-1] == list(SCHEDULERS)
    for info in SCHEDULERS.values():
        assert info.summary in result.out
        assert all(alias in result.out for alias in info.aliases)
    assert all(sigmas in result.out for sigmas in SIGMAS)


def test_json_has_them_all(sdpy: Any) -> None:
    told = json.loads(sdpy("schedulers", "--json").out)
    assert list(told["schedulers"]) == list(SCHEDULERS)
    assert told["schedulers"]["dpm++-2m"]["label"] == "DPM++ 2M"
    assert told["sigmas"] == list(SIGMAS)


def test_the_help_tells_samplers_from_schedulers(sdpy: Any) -> None:
    text = " ".join(sdpy("schedulers", "--help").out.split())
    assert "A sampler is a method" in text
    assert "A scheduler, in diffusers' words, is" in text


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys, sdpy.cli.app as app; app.run(['schedulers']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--scheduler", "eular"),
            "unknown scheduler 'eular': did you mean euler? use one of",
        ),
        (("--scheduler", "euler", "--eta", "0"), "it is for ddim and tcd"),
        (("--sigmas", "karras"), "ddim has sigmas of its own"),
        (("--scheduler", "Euler a", "--sigmas", "steep"), "unknown sigmas 'steep'"),
        (("--prediction", "flow"), "unknown prediction type 'flow'"),
        (("--guidance-rescale", "1.5"), "--guidance-rescale 1.5: use 0 to 1"),
    ],
)
def test_options_that_cannot_work(sdpy: Any, options: tuple[str, ...], message: str) -> None:
    result = sdpy("generate", "lighthouse", *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())
