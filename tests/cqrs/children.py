"""Workers in processes of their own, to be killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def begun(script: str) -> subprocess.Popen[str]:
    """Run a script that finds the modules of this folder; it says ``running`` once it is at work."""
    whole = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{script}"
    child = subprocess.Popen([sys.executable, "-c", whole], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    child.stdout.close()
    return child
