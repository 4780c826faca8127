"""What is loaded where, within which memory, and what is done when memory runs out."""
