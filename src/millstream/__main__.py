"""`python -m millstream`: the command line."""

from .cli import main

main()
