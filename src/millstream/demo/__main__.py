"""``python -m millstream.demo``: the same as ``millstream demo``."""

from ..cli import main

if __name__ == "__main__":
    main(["demo", *__import__("sys").argv[1:]])
