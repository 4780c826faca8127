"""Other ways to compute what a loaded model computes, exactly or approximately; see README.md."""
