"""``python -m scripts.bench``; see `scripts.bench.run`."""

import sys

from scripts.bench.run import main

if __name__ == "__main__":
    sys.exit(main())
