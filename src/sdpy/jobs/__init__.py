"""Many images: files of jobs, what their results are called, and how they are computed."""
