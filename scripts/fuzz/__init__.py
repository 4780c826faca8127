"""Searches for input that makes sdpy fail otherwise than by an error of its own."""
