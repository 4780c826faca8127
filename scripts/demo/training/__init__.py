"""Training the demo model from nothing, and distilling it into faster ones."""
