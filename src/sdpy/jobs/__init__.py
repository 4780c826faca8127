"""Work for many images: what their files are called."""
