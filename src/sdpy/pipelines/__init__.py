"""From settings to pictures: what is loaded when, the denoising loop, and the three tasks."""

from __future__ import annotations

from sdpy.pipelines.components import Components, ModelFiles, find_files
from sdpy.pipelines.control import Control
from sdpy.pipelines.events import Event, Notice, Painted, Progress, PromptRead
from sdpy.pipelines.execution import Execution
from sdpy.pipelines.generate import generate
from sdpy.pipelines.img2img import img2img
from sdpy.pipelines.inpaint import inpaint
from sdpy.pipelines.paint import Settings
from sdpy.pipelines.recognition import Recognised, find_model, recognise

__all__ = [
    "Components",
    "Control",
    "Event",
    "Execution",
    "ModelFiles",
    "Notice",
    "Painted",
    "Progress",
    "Recognised",
    "PromptRead",
    "Settings",
    "find_files",
    "find_model",
    "generate",
    "img2img",
    "inpaint",
    "recognise",
]
