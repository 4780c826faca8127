"""Passes that change nothing but the last rounding."""
