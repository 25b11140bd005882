"""Draws ``demo.svg`` from a run of the demo: ``make picture``."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from millstream.demo.run import run
from millstream.demo.screen import Screen

HERE = Path(__file__).parent


def draw(target: Path) -> None:
    """Run the demo in a folder that is forgotten, and write what it printed as a picture."""
    console = Console(
        record=True,
        width=80,
        height=100,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
        highlight=False,
    )
    before = os.getcwd()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # so that it names no path
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the picture shows the paths of a demo that was run without options
        try:
            run("./demo-out", None, screen=Screen(console, moving=Console(file=io.StringIO())))
        finally:
            os.chdir(before)
    svg = console.export_svg(title="millstream demo", unique_id="demo")
    # Rich names a font to be fetched from the internet; the reader's own will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    # Not every program that draws it keeps spaces at the beginning of a text.
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    svg = svg.replace("Fira Code, monospace", "'Fira Code', Menlo, Consolas, 'DejaVu Sans Mono', monospace")
    target.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "demo.svg")
