"""Looking at many pictures: contact sheets, and a page for the browser."""
