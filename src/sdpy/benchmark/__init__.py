"""Measuring: time, memory and arithmetic of the phases of painting a picture.

`sdpy bench` and ``scripts/bench.py`` share what is here. `figures`, `inputs`, `memory` and `timing`
import no torch, so that a process which only starts and compares others stays small.
"""
