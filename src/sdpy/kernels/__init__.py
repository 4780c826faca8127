"""Other ways to compute the same numbers: passes over a loaded model that it knows nothing of."""
