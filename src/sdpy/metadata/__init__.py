"""How an image was made: sdpy's record, A1111's text, and what other programs write."""
