"""What a model on disk is: its variant, its components, their sizes, and where to get it."""
