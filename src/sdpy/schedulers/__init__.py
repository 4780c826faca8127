"""The samplers: one file each, and one registry. Importing this package imports no torch."""

from __future__ import annotations

from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.config import BETA_SCHEDULES, PREDICTION_TYPES, NoiseConfig
from sdpy.schedulers.registry import (
    SCHEDULERS,
    SIGMAS,
    SchedulerInfo,
    find_scheduler,
    make_scheduler,
)

__all__ = [
    "BETA_SCHEDULES",
    "PREDICTION_TYPES",
    "SCHEDULERS",
    "SIGMAS",
    "NoiseConfig",
    "Scheduler",
    "SchedulerInfo",
    "find_scheduler",
    "make_scheduler",
]
