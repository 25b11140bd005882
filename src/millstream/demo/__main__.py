"""``python -m millstream.demo``: the same as ``millstream demo``."""

import typer

from .command import demo

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command("demo")(demo)
    app(prog_name="python -m millstream.demo")
