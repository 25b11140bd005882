"""``millstream app`` and ``millstream command``: an app of one's own, run and sent commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import UsageError
from .fields import check_known, from_stdin, given
from .options import OutputFormat
from .output import chosen, note, write_record, write_rows

if TYPE_CHECKING:
    from ..app.app import App

AppName = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:APP",
        help="Where the app is: a module that can be imported from here, and the ms.App in it, or a function that"
        " makes one.",
        show_default=False,
    ),
]


def named(place: str, what: str) -> Any:
    """What ``module:name`` names; the current folder is looked in first.

    Args:
        what: What it should be, for the errors: ``"an app"``.

    Raises:
        UsageError: There is nothing of that name.
    """
    word = what.split()[-1]
    module, colon, path = place.partition(":")
    if not (colon and module and path):
        raise UsageError(f"{place!r:.60} does not name {what}", hint=f"Write module:{word}, such as shop:{word}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except Exception as error:
        if module.endswith(".py") and isinstance(error, ModuleNotFoundError):
            raise UsageError(f"{module} is a file", hint=f"Name the module: {module[:-3]}:{path}") from error
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"{module} cannot be imported: {said}", hint="--debug shows where that arose") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"{module} has no {path}", hint=f"Name the variable that holds {what}")
        found = getattr(found, name)
    return found


def load(place: str) -> App:
    """The app that ``module:app`` names; the current folder is looked in first.

    Raises:
        UsageError: There is none.
    """
    from ..app.app import App

    found = named(place, "an app")
    if callable(found) and not isinstance(found, App):
        try:
            found = found()
        except TypeError as error:
            raise UsageError(
                f"{place} makes no millstream.App: {error}", hint="Name the variable that holds one; --debug shows more"
            ) from error
    if not isinstance(found, App):
        raise UsageError(f"{place} is no millstream.App but {found!r:.60}", hint="Name the variable that holds one")
    return found


@contextmanager
def opened(place: str) -> Iterator[App]:
    """The same app; its log is closed at the end."""
    app = load(place)
    try:
        yield app
    finally:
        app.stop()
        app.log.close()


def run(app: AppName) -> None:
    """Run an app's projections, processes, outboxes, captures and flows.

    Until Ctrl-C or SIGTERM, which end it after the work at hand. What crashes
    is started again; that, and what fails for good, is told on stderr.

    \bExamples:
      $ timeout -s INT 2 millstream app run shop:app || test $? = 124
      $ timeout -s INT 2 millstream app run shop:make_app || test $? = 124
    """
    loaded = load(app)
    names = [f"{status.kind} {status.name}" for status in loaded.status()]
    if sys.stderr.isatty():
        note(f"running {', '.join(names) or 'nothing: the app has no workers'}; Ctrl-C ends it")
    workers = logging.getLogger("millstream.workers")
    if workers.hasHandlers():  # the app's own: it may write to a file
        loaded.run(on_failure=lambda name, error: note(f"{name}: {error}"))
        return
    told = _Told()
    workers.addHandler(told)
    try:
        loaded.run()
    finally:
        workers.removeHandler(told)


class _Told(logging.Handler):
    """Says on stderr what becomes of workers."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def status(app: AppName, output: OutputFormat = None) -> None:
    """Show an app's workers, and how far each has come in the log.

    Whichever process runs them: whether one does, `millstream projection ls`
    says of read models. Of an outbox it is shown how many messages wait to be
    sent, and since when.

    \bExamples:
      $ millstream app status shop:app
      $ millstream app status shop:app --output json
    """
    # Their states are those of this process, which runs none.
    names = ("kind", "name", "position", "behind", "waiting", "since", "error")
    rows = [{name: getattr(worker, name) for name in names} for worker in load(app).status()]
    write_rows(rows, names, chosen(output))


def send(
    app: AppName,
    name: Annotated[str, typer.Argument(metavar="COMMAND", help="The command's class.", show_default=False)],
    fields: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="FIELD=VALUE",
            help="Its fields, or all of them as one JSON object. Default: JSON on stdin.",
            show_default=False,
        ),
    ] = None,
    id: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--id", metavar="ID", help="Names this request: a repeat has no effect and gets the same receipt."
        ),
    ] = None,
    correlation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--correlation", metavar="ID", help="The conversation that it belongs to."),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """Have an app execute a command, and report the receipt.

    It is checked and decided as by app.execute, with the app's middleware and
    inline projections. A command that is refused ends with code 5.

    \bExamples:
      $ millstream command send shop:app AddUser user=u2 email=b
      $ millstream command send shop:app AddUser '{"user": "u1", "email": "a"}'
      $ millstream command send shop:app AddUser --id r-7 < user.json
    """
    loaded = load(app)
    values = given(fields) if fields else from_stdin()
    command = loaded.parse(name, values)
    check_known(type(command), values)
    receipt = loaded.execute(command, id=id, correlation=correlation)
    write_record(
        {
            "count": receipt.count,
            "position": receipt.position,
            "stream": receipt.stream,
            "version": receipt.version,
        },
        chosen(output),
    )


def ls(app: AppName, output: OutputFormat = None) -> None:
    """List the commands that an app handles, with their fields.

    \bExamples:
      $ millstream command ls shop:app
      $ millstream command ls shop:app --output json
    """
    rows = [{"command": name, "fields": ", ".join(fields)} for name, fields in load(app).commands().items()]
    write_rows(rows, ("command", "fields"), chosen(output))
