"""Measures time, memory and arithmetic of the phases of generating an image.

``sdpy bench`` and ``python -m scripts.bench`` share this package. `figures`, `inputs`, `memory` and
`timing` import no torch, so that a process which only starts and compares others stays small.
"""
