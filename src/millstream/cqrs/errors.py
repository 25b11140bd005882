"""What can go wrong between commands, read models and queries."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MillstreamError, UsageError


class UnknownCommand(UsageError):
    """No handler was registered for the command."""

    code = "unknown-command"

    def __init__(self, command: str, known: Sequence[str] = ()) -> None:
        super().__init__(
            f"there is no handler for the command {command}",
            hint="Register one with @app.command; its first parameter has the command's type"
            if not known
            else f"Those that there are: {', '.join(sorted(known))}",
        )
        self.command = command


class Unseen(UsageError):
    """A command needs what those that are to take effect together with it would append, and cannot be shown it."""

    code = "unseen"

    def __init__(self, command: str, about: str) -> None:
        super().__init__(
            f"{command} {about} another of the commands that go together is about to append, and has not seen it",
            hint="Execute them one after the other: app.execute_all",
        )
        self.command = command


class UnknownQuery(UsageError):
    """No handler was registered for the query."""

    code = "unknown-query"

    def __init__(self, query: str) -> None:
        super().__init__(
            f"there is no handler for the query {query}",
            hint="Register one with @app.query; its first parameter has the query's type",
        )
        self.query = query


class UnknownProjection(UsageError):
    """An app has no projection of that name."""

    code = "unknown-projection"

    def __init__(self, projection: str, known: list[str]) -> None:
        super().__init__(
            f"there is no projection {projection!r} in this app",
            hint=f"It has {', '.join(known)}" if known else "Give it to ms.App(projections=[…])",
        )
        self.projection = projection


class DuplicateHandler(UsageError):
    """A command or query has a handler already, or two projections have one name."""

    code = "duplicate-handler"

    def __init__(self, what: str, first: str) -> None:
        super().__init__(f"{what} is handled by {first} already", hint="Keep one of the two")
        self.what = what
        self.first = first


class ProjectionFailed(MillstreamError):
    """A handler of a projection raised; the projection stands right before that event, with all before kept.

    The handler's own error is the ``__cause__``.
    """

    code = "projection-failed"

    def __init__(self, projection: str, position: int, type: str, error: str) -> None:
        super().__init__(
            f"projection {projection!r} stopped at position {position} ({type}): {error}",
            hint="Mend its handler and start the app again, or leave the event out: millstream projection skip",
        )
        self.projection = projection
        self.position = position
        self.type = type
        self.error = error


class ReadModelBehind(MillstreamError):
    """A read model that a query uses is behind the log for more than a moment, and the query is not to answer then."""

    code = "read-model-behind"
    http_status = 503

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems), hint='Settle it: millstream projection show; or ask with behind="answer"')
        self.problems = problems


class ProcessFailed(MillstreamError):
    """A process stands still: its handler raised, or a command that it sent failed for no reason of the domain's.

    All before it is kept. The error itself is the ``__cause__``.
    """

    code = "process-failed"

    def __init__(self, process: str, position: int, type: str, error: str) -> None:
        super().__init__(
            f"process {process!r} stopped at position {position} ({type}): {error}",
            hint="Mend its handler, or the command's, and start the app again; it goes on there",
        )
        self.process = process
        self.position = position
        self.type = type
        self.error = error


class ReadModelChanged(MillstreamError):
    """The tables of a read model are of another version of its projection, and no new version is to be built."""

    code = "read-model-changed"
    http_status = 409
    exit_code = 4

    def __init__(self, projection: str, *, withdrawn: bool = False) -> None:
        if withdrawn:
            super().__init__(
                f"the read model of projection {projection!r} was rolled back from this version of its code",
                hint="Run the code that the older one was made by, or build this one again: app.rebuild(…)",
            )
        else:
            super().__init__(
                f"the schema of projection {projection!r} is not the one that its tables were made with",
                hint="Keep it in a file of its own, where a new version is built beside the old one; or give the new"
                " version another name and tables",
            )
        self.projection = projection


class ForeignReadModel(MillstreamError):
    """A read model shows another log than this one, or one that has lost its end."""

    code = "foreign-read-model"
    http_status = 409
    exit_code = 4

    def __init__(self, projection: str, reason: str) -> None:
        super().__init__(
            f"the read model of projection {projection!r} is not of this log: {reason}",
            hint="Delete the read model's file to have it built anew, or give the projection another one",
        )
        self.projection = projection
        self.reason = reason


def in_words(error: BaseException) -> str:
    """An error in words that any database takes: one may have no text, or hold what is none."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}"
    except Exception:
        return name
    return text.encode(errors="replace").decode().replace("\0", "?")
