"""Images: open, fit, mask, convert to tensors and back, save.

Inside sdpy an image is a Pillow image of mode RGB, 8 bits a channel; a mask is a Pillow image of
mode L, from 0 (kept) to 255 (repainted). Sizes are (width, height), as in Pillow. The
modules are imported one by one, because `sdpy.images.paths` serves the command line before torch
and Pillow are loaded.
"""
