"""Passes over a loaded model that make it faster or smaller; the models know nothing of them."""
