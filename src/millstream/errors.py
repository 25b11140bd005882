"""Every error that Millstream raises, one tree.

Each class carries a stable ``code``, typed attributes, a ``hint`` that says what to do, and what a caller
outside Python sees: an HTTP status and an exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MillstreamError(Exception):
    """Root of all errors raised by this library."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take keyword arguments, which the default reduction would lose between processes.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[MillstreamError], args: tuple[Any, ...], state: dict[str, Any]) -> MillstreamError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# --- what the caller gave ------------------------------------------------------------------------


class UsageError(MillstreamError):
    """An argument cannot be used as it is."""

    code = "usage"
    http_status = 400
    exit_code = 2


class InvalidEvent(UsageError):
    """An event, its metadata or its tags cannot be stored."""

    code = "invalid-event"


class DuplicateType(UsageError):
    """Two different classes claim one type name, as their own or as an old one."""

    code = "duplicate-type"

    def __init__(self, type: str, first: str, second: str) -> None:
        super().__init__(
            f"{first} and {second} are different classes for the event type {type!r}",
            hint="Give one of them another name with type=, or take the name out of names=, or delete the first class",
        )
        self.type = type
        self.first = first
        self.second = second


class InvalidUpcaster(InvalidEvent):
    """An upcaster cannot be used as it is declared."""

    code = "invalid-upcaster"


class SchemaMismatch(InvalidEvent):
    """A stored event was written by newer code: its class here has an older schema. Its plain data can be read."""

    code = "schema-mismatch"
    http_status = 500
    exit_code = 1

    def __init__(self, type: str, stored: int, known: int, position: int) -> None:
        super().__init__(
            f"event {type!r} at position {position} has schema {stored}, and its class here has schema {known}",
            hint="Upgrade this program, or read the event's plain data",
        )
        self.type = type
        self.stored = stored
        self.known = known
        self.position = position


class UpcasterMissing(InvalidEvent):
    """A stored event needs a chain of upcasters, and one of them is missing."""

    code = "upcaster-missing"
    http_status = 500
    exit_code = 1

    def __init__(self, type: str, missing: int, stored: int, position: int) -> None:
        super().__init__(
            f"event {type!r} at position {position} has schema {stored}, and no upcaster makes schema {missing} of it",
            hint=f"Define one with @ms.upcast({type!r}, since={missing}); it may return the data unchanged",
        )
        self.type = type
        self.missing = missing
        self.stored = stored
        self.position = position


class UpcastFailed(InvalidEvent):
    """An upcaster raised, or gave something that is no event's data; the cause is chained."""

    code = "upcast-failed"
    http_status = 500
    exit_code = 1

    def __init__(self, type: str, since: int, position: int, reason: str) -> None:
        super().__init__(
            f"the upcaster of {type!r} to schema {since} failed for the event at position {position}: {reason}",
            hint="Correct the upcaster: what is stored stays as it is; `millstream schema check` finds all such events",
        )
        self.type = type
        self.since = since
        self.position = position
        self.reason = reason


class InvalidStreamName(UsageError):
    """A stream name is empty, too long, or holds characters that a name may not hold."""

    code = "invalid-stream-name"

    def __init__(self, stream: object, reason: str) -> None:
        super().__init__(
            f"{stream!r:.80} is not a stream name: {reason}",
            hint="Use 1 to 512 bytes of printable text without '*', such as 'account-1'",
        )
        self.stream = stream


class InvalidTime(UsageError):
    """A time or duration is not in a form that is understood."""

    code = "invalid-time"


class InvalidPosition(UsageError):
    """A position or a range of positions is not in a form that is understood."""

    code = "invalid-position"


class UnsupportedColumn(UsageError):
    """A frame holds a column whose type cannot be stored."""

    code = "unsupported-column"

    def __init__(self, column: str, dtype: str) -> None:
        super().__init__(
            f"column {column!r} has type {dtype}, which cannot be stored",
            hint="Cast it to a number, string, binary, temporal, list or struct type first",
        )
        self.column = column
        self.dtype = dtype


class SchemaConflict(UsageError):
    """A column's type does not agree with what the stream already holds, and cannot be widened to."""

    code = "schema-conflict"
    http_status = 409
    exit_code = 4

    def __init__(self, stream: str, column: str, stored: str, given: str) -> None:
        super().__init__(
            f"column {column!r} of stream {stream!r} is {stored} in the log and {given} in this frame",
            hint="Cast the column to the stored type, or give it another name",
        )
        self.stream = stream
        self.column = column
        self.stored = stored
        self.given = given


class InvalidRetention(UsageError):
    """A retention rule, or what is to be trimmed or archived, is not in a form that is understood."""

    code = "invalid-retention"


class InvalidDepot(UsageError):
    """The address of a depot, where archives and copies are kept, cannot be used as it is."""

    code = "invalid-depot"


class KeysNeeded(UsageError):
    """Personal data is to be written or read, and the log was not told where its keys are."""

    code = "keys-needed"

    def __init__(self, location: str, *, missing: str | None = None) -> None:
        if missing is None:
            reason = f"there is personal data, and nothing is said of where the keys of {location} are"
            hint = 'Open it with keys, such as ms.open(url, keys="keys.db"), or --keys keys.db'
        else:
            reason = f"{location} holds data that is sealed, and its file of keys, {missing}, is not there"
            hint = "Put it back; or make an empty file of that name, to begin with new keys and lose what is sealed"
        super().__init__(reason, hint=hint)
        self.location = location
        self.missing = missing


class MissingExtra(MillstreamError):
    """A feature needs a package that is not installed."""

    code = "missing-extra"
    http_status = 501

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"this needs {package}", hint=f"Install it with: pip install 'millstream[{extra}]'")
        self.extra = extra
        self.package = package


# --- what was decided by what the log holds --------------------------------------------------------


class Conflict(MillstreamError):
    """The log, as it stands, does not allow the append."""

    code = "conflict"
    http_status = 409
    exit_code = 4


class VersionConflict(Conflict):
    """A stream is not at the version that the append expected."""

    code = "version-conflict"

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, not at {expected} as expected",
            hint="Load it again, decide again, and append with the new version",
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual


class ConditionFailed(Conflict):
    """An event that the append was guarded against is in the log."""

    code = "condition-failed"

    def __init__(self, position: int) -> None:
        super().__init__(
            f"an event that the append excludes (unless=) stands at position {position}",
            hint="Read the events again, decide again, and append with the new position",
        )
        self.position = position


class IdReused(Conflict):
    """An append id was used before with other content."""

    code = "id-reused"

    def __init__(self, id: str, position: int) -> None:
        super().__init__(
            f"append id {id!r} was used before with other content (up to position {position})",
            hint="Give each append an id of its own; repeat an id only to retry the very same append",
        )
        self.id = id
        self.position = position


class SubjectForgotten(Conflict):
    """Personal data of someone who was forgotten for good is to be appended."""

    code = "subject-forgotten"

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"subject {subject!r} was forgotten, and no personal data of theirs is taken",
            hint="Use another id if it is someone else",
        )
        self.subject = subject


class StreamClosed(Conflict):
    """The stream was closed for good."""

    code = "stream-closed"

    def __init__(self, stream: str) -> None:
        super().__init__(f"stream {stream!r} is closed", hint="Append to another stream; its past stays readable")
        self.stream = stream


class Rejected(MillstreamError):
    """A command is refused by the rules of the domain.

    Args:
        reason: What the caller did that is not allowed, in words for the person who did it.
        field: The name of the command's field at fault, when it is one.
        problems: All that is wrong, by field, when several are at fault.

    Attributes:
        problems: By field, what is wrong; also when there is but one. Empty when no field is at fault.
    """

    code = "rejected"
    http_status = 422
    exit_code = 5

    def __init__(self, reason: str, *, field: str | None = None, problems: Mapping[str, str] | None = None) -> None:
        said = "; ".join(f"{name}: {wrong}" for name, wrong in problems.items()) if problems else reason
        super().__init__(said)
        self.reason = reason
        self.field = field
        self.problems = dict(problems) if problems else {field: reason} if field is not None else {}


class NotFound(MillstreamError):
    """What was asked for is not there."""

    code = "not-found"
    http_status = 404
    exit_code = 3


class StreamNotFound(NotFound):
    """No event was ever appended to the stream."""

    code = "stream-not-found"

    def __init__(self, stream: str, meant: str | None = None) -> None:
        hint = f"Write {meant!r}, if that is meant" if meant else "List the streams with log.streams()"
        super().__init__(f"there is no stream {stream!r}", hint=hint)
        self.stream = stream


class Trimmed(MillstreamError):
    """An event's data is asked for, and retention has trimmed it; its header is still there."""

    code = "trimmed"
    http_status = 410
    exit_code = 3

    def __init__(self, position: int, stream: str, at: str, by: str, rule: str) -> None:
        super().__init__(
            f"the event at position {position} of stream {stream!r} was trimmed on {at} by {by} ({rule})",
            hint="Its data is gone for good; read from a later position, or restore a backup beside this log",
        )
        self.position = position
        self.stream = stream
        self.at = at
        self.by = by
        self.rule = rule


class ConsumerFenced(MillstreamError):
    """Another worker has taken over this consumer; the work was rolled back."""

    code = "consumer-fenced"
    http_status = 409
    exit_code = 4

    def __init__(self, name: str) -> None:
        super().__init__(
            f"consumer {name!r} was taken over by another worker; nothing of this batch was kept",
            hint="Stop this worker; the other one goes on from the last checkpoint",
        )
        self.name = name


class TimedOut(MillstreamError):
    """Something did not happen within the time allowed for it."""

    code = "timed-out"
    http_status = 504


# --- the file and the machine ----------------------------------------------------------------------


class StorageError(MillstreamError):
    """The store under the log cannot do what was asked."""

    code = "storage"


class NotALog(StorageError):
    """The file is not a Millstream log."""

    code = "not-a-log"

    def __init__(self, path: str, *, empty: bool = False) -> None:
        hint = "Give the path of a log, or of a new file"
        if empty:  # as it is where only the file itself was copied of a log that was open
            hint += "; a copy of a log that was open lacks what stands in the -wal beside it: copy with log.backup()"
        super().__init__(f"{path} is not a Millstream log", hint=hint)
        self.path = path


class NewerFormat(StorageError):
    """The log was written by a newer version of the library."""

    code = "newer-format"

    def __init__(self, path: str, found: int, supported: int) -> None:
        super().__init__(
            f"{path} has format {found}; this version reads up to format {supported}",
            hint="Upgrade millstream",
        )
        self.path = path
        self.found = found
        self.supported = supported


class DamagedLog(StorageError):
    """Stored bytes cannot be read back, or do not match their hash."""

    code = "damaged-log"

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(
            f"the log is damaged at position {position}: {reason}",
            hint="Run `millstream verify`, then restore from a backup",
        )
        self.position = position
        self.reason = reason


class KeyLost(StorageError):
    """The key of a subject is not there, and they were not forgotten; other subjects are not affected."""

    code = "key-lost"

    def __init__(self, subject: str, stream: str, position: int, keys: str = "") -> None:
        self.subject = subject
        self.stream = stream
        self.position = position
        super().__init__(
            f"{self._what} {subject!r}, in the event at position {position} of stream {stream!r}",
            hint=f"Open the log with the keys that it was written with{f' (these are {keys})' if keys else ''}:"
            " ms.open(path, keys=...); if they were lost, put their copy back before anything is appended",
        )

    _what = "there is no key for the personal data of subject"


class KeyWrong(KeyLost):
    """The key of a subject is another one than their data was sealed with, or the sealed data was changed."""

    code = "key-wrong"
    _what = "the key does not fit the personal data of subject"


class ReadOnlyLog(StorageError):
    """The log cannot be written: it was opened read-only, or its file or folder is read-only."""

    code = "read-only"

    def __init__(self, path: str, *, hint: str = "Check the permissions of the file and of its folder") -> None:
        super().__init__(f"{path} is read-only", hint=hint)
        self.path = path


class DiskFull(StorageError):
    """There is no room left; nothing of what was to be written was kept."""

    code = "disk-full"
    http_status = 507

    def __init__(self, path: str) -> None:
        super().__init__(
            f"no room left to write {path}; nothing was kept of what was to be written",
            hint="Free some space and try again; what was there before is whole",
        )
        self.path = path


class LogLocked(StorageError):
    """Another process held the log's writer lock for too long."""

    code = "log-locked"
    http_status = 503

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(
            f"another process held the writer lock of {path} for more than {seconds:g} s",
            hint="End that process's transaction, or open the log with a longer lock_timeout=",
        )
        self.path = path
        self.seconds = seconds


class LogClosed(StorageError):
    """The log was closed by this process."""

    code = "log-closed"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is closed", hint="Open it again with millstream.open()")
        self.path = path


class ReplicaLog(StorageError):
    """The log is a copy that follows another one, and takes no appends of its own."""

    code = "replica"
    http_status = 409
    exit_code = 4

    def __init__(self, path: str, source: str) -> None:
        super().__init__(
            f"{path} is a copy{f' of {source}' if source else ''} and takes no appends of its own",
            hint="Append to its source; or end the copy with `millstream copy --switch` or `millstream promote`",
        )
        self.path = path
        self.source = source


class LogMoved(StorageError):
    """The log has moved: this is what it was before, still there to be read."""

    code = "log-moved"
    http_status = 409
    exit_code = 4

    def __init__(self, path: str, target: str) -> None:
        super().__init__(
            f"{path} has moved{f' to {target}' if target else ''} and takes no more appends",
            hint="Open the log at its new home; `millstream promote` would make this one a home again",
        )
        self.path = path
        self.target = target


class InlineMissing(StorageError):
    """This process lacks an inline projection that everyone who appends events of the type must have."""

    code = "inline-missing"
    http_status = 409
    exit_code = 4

    def __init__(self, projection: str, type: str) -> None:
        projection = projection.removeprefix("projection:")
        super().__init__(
            f"events of type {type!r} are appended with the inline projection {projection!r} only, and this process has"
            " none of that name and schema",
            hint="Append through the app that has it (app.execute, `millstream command send`); if it is used no more,"
            " retire it: log.retire_inline(name), `millstream inline retire`",
        )
        self.projection = projection
        self.type = type


class NotAPrefix(StorageError):
    """A copy cannot go on in this target: what is there is not the beginning of the source."""

    code = "not-a-prefix"
    http_status = 409
    exit_code = 4

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(
            f"{target} cannot take the copy: {reason}",
            hint="Give an empty target, or the one that an earlier copy of the same log went to",
        )
        self.target = target
        self.reason = reason


class DepotError(StorageError):
    """A depot, the folder or object store of an archive or a copy, refuses, or does not give what was put there."""

    code = "depot"
    http_status = 502

    def __init__(self, location: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{location}: {reason}", hint=hint or "Check the address, the credentials and the network")
        self.location = location
        self.reason = reason


class DepotUnavailable(DepotError):
    """A depot did not answer in time, or said that it is busy: the same request may succeed later."""

    code = "depot-unavailable"
    http_status = 503


class DepotFileMissing(DepotError):
    """A file that was put into a depot is not there."""

    code = "depot-file-missing"

    def __init__(self, location: str, file: str) -> None:
        super().__init__(
            location,
            f"there is no file {file}",
            hint="Put it back from a copy; if the archive has moved, say so with log.archives.relocate(old, new)",
        )
        self.file = file


class DepotFileChanged(DepotError):
    """A file of a depot is not as it was put there."""

    code = "depot-file-changed"

    def __init__(self, location: str, file: str, reason: str = "its checksum is another") -> None:
        super().__init__(
            location,
            f"file {file} was changed: {reason}",
            hint="Put it back from a copy; `millstream archive verify` names all such files",
        )
        self.file = file


class NetworkFilesystem(StorageError):
    """The file lies on a network file system, whose locks cannot be trusted."""

    code = "network-filesystem"

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(
            f"{path} lies on a network file system ({kind}), where locks can be lost",
            hint="Keep the log on a local disk",
        )
        self.path = path
        self.kind = kind


class ClockJumped(StorageError):
    """The wall clock moved in a way that would put wrong times into the log."""

    code = "clock-jumped"

    def __init__(self, clock: str, expected: str) -> None:
        super().__init__(
            f"the clock says {clock}, but {expected} was to be expected",
            hint="Set the clock right, or confirm it with log.confirm_clock()",
        )
        self.clock = clock
        self.expected = expected


class ConnectionFailed(StorageError):
    """The database server cannot be reached, refuses, or went away; a retry by append id tells what became of it."""

    code = "connection-failed"
    http_status = 503

    def __init__(self, location: str, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"{location}: {reason}", hint=hint or "Check the URL and that the server runs and is reachable"
        )
        self.location = location
        self.reason = reason


class PermissionDenied(StorageError):
    """The database role may not do this."""

    code = "permission-denied"
    http_status = 403

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(
            f"{location}: {reason}",
            hint="Grant the role what it needs: `millstream postgres grants` prints the statements",
        )
        self.location = location
        self.reason = reason


class Deadlocked(StorageError):
    """A database has ended a transaction that others stood in the way of, and it in theirs. Nothing of it was kept."""

    code = "deadlocked"
    http_status = 503

    def __init__(self, reason: str) -> None:
        super().__init__(reason, hint="Try again; have all who change several rows do so in one order")
        self.reason = reason


class DatabaseError(StorageError):
    """A database refused a statement."""

    code = "database"


class ConstraintViolated(DatabaseError):
    """A constraint of the database (unique, foreign key, check, not null) rejects the row."""

    code = "constraint-violated"
    http_status = 409
    exit_code = 4


class InvalidQuery(UsageError):
    """A query is not SQL that can be answered."""

    code = "invalid-query"


class CaptureError(MillstreamError):
    """Change data capture cannot go on."""

    code = "capture"


class CaptureWarning(UserWarning):
    """A capture's source holds back more for it than it was told to accept."""


class SourceUnavailable(CaptureError):
    """The captured database cannot be reached now; a running capture tries again, with pauses."""

    code = "source-unavailable"
    http_status = 503


class NotCapturedYet(CaptureError):
    """A table is asked for at a moment before its capture began."""

    code = "not-captured-yet"
    http_status = 404
    exit_code = 3


class SinkError(MillstreamError):
    """What follows a captured table cannot do its work."""

    code = "sink"
    http_status = 502


class SinkUnavailable(SinkError):
    """A sink cannot be reached, or is overloaded: it gets the same changes again later, as long as it takes.

    Args:
        after: The seconds that it asked to be left alone for.
    """

    code = "sink-unavailable"
    http_status = 503

    def __init__(self, message: str, *, hint: str = "", after: float | None = None) -> None:
        super().__init__(message, hint=hint or "The follower tries again by itself, with pauses")
        self.after = after


class SinkGone(SinkError):
    """A sink wants no more changes, ever: its follower has ended."""

    code = "sink-gone"
    http_status = 410


class InvalidWebhook(MillstreamError):
    """A request is not a webhook that was signed with the secret, or it is too old."""

    code = "invalid-webhook"
    http_status = 401
