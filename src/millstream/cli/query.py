"""``millstream query``: ask an app's read models."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import msgspec
import typer

from ..conversion import ready
from ..errors import UsageError
from ..log.positions import Position, parse_place
from .apps import AppName, opened
from .fields import check_known, fields_of, given
from .options import OutputFormat, limit_of
from .output import Output, chosen, write_record, write_rows


def query(
    app: AppName,
    name: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="QUERY", help="The class of the query. Default: list those that there are.", show_default=False
        ),
    ] = None,
    fields: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="FIELD=VALUE", help="Its fields, or all of them as one JSON object.", show_default=False
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Wait until all that is committed is shown.")] = False,
    at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--at", metavar="PLACE", help="As it stood there: a position, or @ and a time.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then each change, until Ctrl-C.")] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="The longest wait, such as 30s or 5m.")
    ] = "10s",
    output: OutputFormat = None,
) -> None:
    """Answer a query of an app from its read models, or list the queries.

    A position or a time is inclusive: what happened there is shown. With
    --follow and --timeout it ends when nothing changed for so long.

    \bExamples:
      $ millstream query shop:app
      $ millstream query shop:app GetOrder order=order-1
      $ millstream query shop:app GetOrder order=order-1 --at 2
    """
    limit = limit_of(timeout)
    with opened(app) as found:
        if name is None:
            rows = [{"query": cls.__name__, "fields": fields_of(cls)} for cls in found.queries()]
            write_rows(sorted(rows, key=lambda row: row["query"]), ("query", "fields"), chosen(output))
            return
        asked = _made(found.queries(), name, fields or [])
        if at is None:
            found.fill()  # nothing here keeps what is in memory
        if follow:
            for answer in found.subscribe(asked, timeout=limit):
                _write(answer, chosen(output))
            return
        moment: Any = None
        if at is not None:
            place = parse_place(at)
            # A place is just before an event, and the past takes in what stands there.
            moment = Position(place.resolve(found.log) - (place.position is None))
        _write(found.query(asked, fresh=fresh, timeout=limit, at=moment), chosen(output))


def _made(classes: list[type[Any]], name: str, fields: list[str]) -> Any:
    by_name = {cls.__name__: cls for cls in classes}
    if name not in by_name:
        raise UsageError(f"the app has no query {name!r}", hint=f"It has {', '.join(sorted(by_name)) or 'none'}")
    values = given(fields)
    check_known(by_name[name], values)
    try:
        return msgspec.convert(values, ready(by_name[name]), strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name}: {error}", hint="Give each field as FIELD=VALUE, or all as JSON") from error


def _write(answer: Any, output: Output) -> None:
    plain = msgspec.to_builtins(answer, enc_hook=str)
    if isinstance(plain, dict):
        write_record(plain, output)
    elif isinstance(plain, list) and plain and all(isinstance(row, dict) for row in plain):
        write_rows(plain, list(plain[0]), output)
    else:
        write_record({"result": plain}, output)
