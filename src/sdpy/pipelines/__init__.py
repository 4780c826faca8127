"""From a request to images: the denoising loop, and the three tasks."""

from __future__ import annotations

from sdpy.pipelines.components import Components
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.events import Event, Notice, Painted, Progress, PromptRead
from sdpy.pipelines.execution import Execution
from sdpy.pipelines.img2img import img2img
from sdpy.pipelines.inpaint import inpaint
from sdpy.pipelines.paint import Settings
from sdpy.pipelines.text2img import generate

__all__ = [
    "Components",
    "Control",
    "Event",
    "Execution",
    "Notice",
    "Painted",
    "Progress",
    "PromptRead",
    "Settings",
    "generate",
    "img2img",
    "inpaint",
]
