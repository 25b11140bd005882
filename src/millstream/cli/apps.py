"""Apps as the command line names them: ``module:name``, found from the current folder."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFound, UsageError

if TYPE_CHECKING:
    from ..app.app import App

AppName = Annotated[
    str,
    typer.Argument(
        metavar="APP", help="The app: module:name, such as shop:app, found from this folder.", show_default=False
    ),
]

_FORM = "Write module:name, such as shop:app for the app in shop.py"


@contextmanager
def opened(name: str) -> Iterator[App]:
    """The app of a name; its log is closed at the end.

    Raises:
        UsageError: The name is none, or stands for something else.
        NotFound: There is no such module, or nothing of that name in it.
    """
    app = load(name)
    try:
        yield app
    finally:
        app.stop()
        app.log.close()


def load(name: str) -> App:
    """The app of a name."""
    from ..app.app import App

    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"{name!r:.80} does not name an app", hint=_FORM)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise NotFound(f"there is no module {module!r} in {os.getcwd()}", hint=_FORM) from error
    app = getattr(found, attribute, None)
    if app is None:
        raise NotFound(f"module {module!r} has no {attribute!r}", hint=_FORM)
    if not isinstance(app, App):
        raise UsageError(f"{name} is {type(app).__name__}, not an app", hint="Name what ms.App(…) gave")
    return app
