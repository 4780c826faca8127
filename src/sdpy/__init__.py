"""Stable Diffusion in plain torch: text to picture, picture to picture, inpainting."""

from __future__ import annotations

__version__ = "0.1.0"
