"""``python -m millstream.demo``: the same as ``millstream demo``."""

import sys

from ..cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
