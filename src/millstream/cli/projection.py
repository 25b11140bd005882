"""``millstream projection``: the read models of an app, and what is done about them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..errors import NotFound, UsageError
from .apps import AppName, opened
from .options import OutputFormat
from .output import chosen, note, write_record, write_rows

if TYPE_CHECKING:
    from ..app.app import App
    from ..app.read_side import ReadModel
    from ..cqrs.building import Progress

_Name = Annotated[str, typer.Argument(metavar="PROJECTION", help="The projection's name.", show_default=False)]
_Position = Annotated[
    Optional[int],  # noqa: UP045 - read at run time
    typer.Option("--position", "-p", metavar="N", help="Only the event that failed at this position."),
]

_COLUMNS = ("name", "state", "position", "behind", "version", "failed", "place")
_FAILURES = ("position", "stream", "type", "state", "error", "time")


def _row(model: ReadModel) -> dict[str, Any]:
    live = [version.number for version in model.versions if version.state == "live"]
    waiting = [failure for failure in model.failures if failure.state != "skipped"]
    if model.inline:
        state = "inline"
    elif model.live:
        state = "live"
    elif model.place == ":memory:":
        state = "in memory"
    elif any(failure.state == "stopped" for failure in waiting):
        state = "failed"
    else:
        state = "paused" if model.paused else "kept" if model.holder else "not kept"
    return {
        "name": model.name,
        "state": state,
        "position": model.position,
        "behind": model.behind,
        "version": live[0] if live else None,
        "failed": len(waiting),
        "place": model.place or "the log",
    }


def ls(app: AppName, output: OutputFormat = None) -> None:
    """List the read models of an app, and how far each has come.

    A projection is kept by some process, or not; paused; or failed. An inline
    one is kept in the commits that append, one in memory by each process that
    runs the app, and a live one is computed by each query.

    \bExamples:
      $ millstream projection ls shop:app
      $ millstream projection ls shop:app --output json
    """
    with opened(app) as found:
        rows = [_row(model) for model in found.read_models()]
    write_rows(rows, _COLUMNS, chosen(output))


def show(
    app: AppName,
    name: _Name,
    failures: Annotated[bool, typer.Option("--failures", help="List the events that it could not apply.")] = False,
    output: OutputFormat = None,
) -> None:
    """Show a read model, its versions and partitions, or the events that it could not apply.

    \bExamples:
      $ millstream projection show shop:app OrderSummary
      $ millstream projection show shop:app OrderSummary --failures
    """
    with opened(app) as found:
        models = {model.name: model for model in found.read_models()}
    if name not in models:
        raise NotFound(f"there is no projection {name!r} in {app}", hint=f"It has {', '.join(models) or 'none'}")
    model = models[name]
    if failures:
        rows = [{key: getattr(failure, key) for key in _FAILURES} for failure in model.failures]
        write_rows(rows, _FAILURES, chosen(output))
        return
    versions = ", ".join(f"{version.number} {version.state}" for version in model.versions)
    shown = {**_row(model), "versions": versions}
    if model.partitions:
        shown["partitions"] = ", ".join(
            f"{part.name} at {part.position} {'kept' if part.holder else 'not kept'}" for part in model.partitions
        )
    write_record(shown, chosen(output))


def pause(app: AppName, name: _Name) -> None:
    """Have no process keep a projection, until it is resumed.

    Whoever keeps it lets go within two seconds. Queries answer with what is
    there.

    \bExamples:
      $ millstream projection pause shop:app OrderSummary
      $ millstream projection pause shop:app OrderSummary --debug
    """
    with opened(app) as found:
        found.pause(name)


def resume(app: AppName, name: _Name) -> None:
    """Have a projection that was paused kept again.

    \bExamples:
      $ millstream projection resume shop:app OrderSummary
      $ millstream projection resume shop:app OrderSummary --debug
    """
    with opened(app) as found:
        found.resume(name)


def _check_shared(app: App, name: str) -> None:
    """Refuse what would only be done to rows that go with this command."""
    model = {model.name: model for model in app.read_models()}.get(name)
    if model is not None and model.place == ":memory:" and not model.live:
        raise UsageError(
            f"projection {name!r} is kept in memory, by each process for itself",
            hint="Have the process do it that runs the app, from Python; or start that one anew",
        )


def rebuild(
    app: AppName,
    name: _Name,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: compare with what a rebuild would give. 1 if it differs.")
    ] = False,
    skip_trimmed: Annotated[
        bool, typer.Option("--skip-trimmed", help="Build it without the events that retention has trimmed.")
    ] = False,
    output: OutputFormat = None,
) -> None:
    """Build a read model anew beside the one that answers, then swap them.

    Until the new one is level the old one answers, and whoever keeps it goes
    on. The old one stays, to be rolled back to. Ended at any moment, nothing
    has changed.

    \bExamples:
      $ millstream projection rebuild shop:app OrderSummary --check
      $ millstream projection rebuild shop:app OrderSummary
    """
    with opened(app) as found:
        _check_shared(found, name)
        if check:
            compared = found.compare(name)
            write_record(
                {
                    "name": name,
                    "position": compared.position,
                    "rows": compared.rows,
                    "same": compared.same,
                    "differences": "; ".join(
                        f"{each.table}: {each.missing} rows missing, {each.surplus} too many"
                        for each in compared.differences
                    ),
                },
                chosen(output),
            )
            if not compared.same:
                raise typer.Exit(1)
            return
        version = found.rebuild(name, progress=_Told(), trimmed="skip" if skip_trimmed else "raise")
    write_record({"name": name, "version": version.number, "place": version.place or "the log"}, chosen(output))


class _Told:
    """Says now and then, on a terminal, how far a rebuild has come."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= 1 and sys.stderr.isatty():
            self._last = time.monotonic()
            left = "" if progress.left is None else f", {progress.left:,.0f} s left"
            note(f"{progress.name}: {progress.position:,} of {progress.head:,}, {progress.rate:,.0f}/s{left}")


def rollback(app: AppName, name: _Name, output: OutputFormat = None) -> None:
    """Have the version of a read model that answered before answer again.

    \bExamples:
      $ millstream projection rollback shop:app OrderSummary
      $ millstream projection rollback shop:app OrderSummary --output json
    """
    with opened(app) as found:
        _check_shared(found, name)
        version = found.rollback(name)
    write_record({"name": name, "version": version.number}, chosen(output))


def retry(app: AppName, name: _Name, position: _Position = None, output: OutputFormat = None) -> None:
    """Try events again that a projection could not apply.

    What is parked of a stream takes effect in order, in one transaction. The
    event that a projection stands before is tried by whoever keeps it.

    \bExamples:
      $ millstream projection retry shop:app OrderSummary --output json
      $ millstream projection retry shop:app OrderSummary
    """
    with opened(app) as found:
        _check_shared(found, name)
        done = found.retry(name, position=position)
    write_record({"name": name, "tried": done}, chosen(output))


def skip(app: AppName, name: _Name, position: _Position = None, output: OutputFormat = None) -> None:
    """Leave out an event that a projection could not apply.

    Without a position: the one that it stands before. What is parked behind a
    parked one is applied.

    \bExamples:
      $ millstream projection skip shop:app OrderSummary --position 3
      $ millstream projection skip shop:app OrderSummary -p 4 --output json
    """
    with opened(app) as found:
        _check_shared(found, name)
        failure = found.skip(name, position=position)
    write_record({"name": name, "skipped": failure.position, "error": failure.error}, chosen(output))
