"""Looking at many images: contact sheets, and a page for the browser."""
