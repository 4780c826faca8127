"""From a request to images: planning, the denoising loop, and the three tasks.

Text-to-image, image-to-image and inpainting differ only in how the latents begin and in what is
kept of a given image; `text2img`, `img2img` and `inpaint` say how. `generate` goes from requests to
decoded images a batch at a time, and `pipeline` from there to files and Python's users. The modules
are imported one by one, because `sdpy.pipelines.request` serves the command line without torch.
"""
