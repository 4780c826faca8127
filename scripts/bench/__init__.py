"""Benchmarks: sdpy beside diffusers, and what the approximations save."""
