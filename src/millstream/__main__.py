"""`python -m millstream`: the command line."""

import sys

from .cli import main

sys.exit(main())
