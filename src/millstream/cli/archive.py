"""``millstream archive``: events in Parquet files of a folder or an object store."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Optional

import typer

from ..errors import StorageError, UsageError
from .options import By, LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, write_record, write_rows

_FIELDS = ("stream", "type", "first", "last", "rows", "used", "size", "name", "location", "sha256")


class Action(StrEnum):
    """What to do."""

    RUN = "run"
    LS = "ls"
    VERIFY = "verify"
    RESTORE = "restore"
    RELOCATE = "relocate"


_TAKES = {
    Action.RUN: {"stream", "--to", "--keep", "--by"},
    Action.LS: set(),
    Action.VERIFY: {"--clean", "--by"},
    Action.RESTORE: {"stream", "--by"},
    Action.RELOCATE: {"--from", "--to", "--by"},
}


def archive(
    action: Annotated[
        Action,
        typer.Argument(
            metavar="run|ls|verify|restore|relocate",
            help="Put events into files; list the files; check them; put events back; say that they have moved.",
            show_default=False,
            case_sensitive=False,
        ),
    ],
    log: LogPath,
    stream: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Argument(
            metavar="STREAM",
            help="For run and restore: a stream, or a category such as 'sensor-*'. Default: what the rules say; all.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--to",
            metavar="PLACE",
            help="For run and relocate: a folder, or a URL such as s3://bucket/prefix.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--keep",
            metavar="KEEP",
            help="For run: what stays in the log: 30d, 1000000 or 10GB. Default: nothing.",
            show_default=False,
        ),
    ] = None,
    old: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--from", metavar="PLACE", help="For relocate: where the archive was.", show_default=False),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="For verify: delete files that nothing is read from, a day old or more.")
    ] = False,
    by: By = None,
    output: OutputFormat = None,
) -> None:
    """Keep old events in Parquet files, from which they are read as before.

    Each file is read back and its hashes are worked out anew before the log
    lets go of anything. The log knows where its archives are; credentials of an
    object store come from the environment, such as AWS_ACCESS_KEY_ID.

    \bExamples:
      $ millstream archive run shop.db clicks --to ./old --keep 0
      $ millstream archive ls shop.db
      $ millstream archive verify shop.db
      $ millstream archive restore shop.db clicks
    """  # fmt: skip
    given = {"stream": stream, "--to": to, "--keep": keep, "--from": old, "--clean": clean or None, "--by": by}
    _check(action, given)
    if action is Action.LS:
        with open_to_read(log) as source:
            write_rows(source.archives.files(), _FIELDS, chosen(output))
    elif action is Action.VERIFY:
        with open_to_write(log, create=False) if clean else open_to_read(log) as source:
            found = source.archives.verify(clean=clean, by=by)
        record = {"files": found.files, "cleaned": found.cleaned, "faults": found.faults}
        write_record(record, chosen(output))
        if not found.whole:
            lost = [fault for fault in found.faults if fault.is_loss]
            raise StorageError(
                f"{len(lost)} files cannot be read, the first: {lost[0].reason}", hint="Put them back from a copy"
            )
    else:
        with open_to_write(log, create=False) as target:
            answer: Mapping[str, Any]
            if action is Action.RUN:
                done = target.archive(stream, to=to, keep=keep or 0, by=by)
                answer = {"streams": done.streams, "runs": done.runs, "events": done.events}
            elif action is Action.RESTORE:
                back = target.archives.restore(stream, by=by)
                answer = {"runs": back.runs, "events": back.events}
            else:
                if old is None or to is None:
                    raise UsageError("--from and --to are needed", hint="Say where the archive was, and where it is")
                target.archives.relocate(old, to, by=by)
                answer = {"locations": target.archives.locations()}
        write_record(answer, chosen(output))


def _check(action: Action, given: Mapping[str, Any]) -> None:
    extra = [name for name, value in given.items() if value is not None and name not in _TAKES[action]]
    if extra:
        takes = ", ".join(sorted(_TAKES[action])) or "nothing else"
        raise UsageError(f"`archive {action}` has no use for {extra[0]}", hint=f"It takes {takes}")
