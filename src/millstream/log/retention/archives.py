"""The archives of a log: what is in them, whether it is whole, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from ...errors import DepotError, DepotFileMissing, NotFound
from ...events import Event
from ...storage.base import Encoding
from ...time import Duration, duration_micros, seconds
from ..depots import Entry, check_location, open_depot
from .ledger import ArchiveAdded, ArchiveCleaned, ArchiveMoved, Ledger, RunsArchived, RunsTrimmed, decoded
from .reader import ArchiveReader, Pointer, name_of, pointer_of
from .rules import check_by

if TYPE_CHECKING:
    from ..log import Log
    from .restore import Restored

MANIFEST = "manifest.jsonl"
_encode = msgspec.json.Encoder().encode


class _Line(msgspec.Struct):
    """The name in a line of a manifest."""

    file: str


_name = msgspec.json.Decoder(_Line).decode


class ArchivedFile(msgspec.Struct, frozen=True):
    """A file of an archive, as the log knows it.

    Attributes:
        location: Where the archive is.
        name: The file's name there.
        sha256: Of the whole file, in hex.
        size: In bytes.
        stream: The stream whose events it holds, or the beginning of the names of its streams followed by ``*``.
        type: The events' type.
        first: Position of the first event.
        last: Position of the last one.
        rows: How many events it holds.
        used: How many of them are read from it: others were restored to the log or trimmed.
    """

    location: str
    name: str
    sha256: str
    size: int
    stream: str
    type: str
    first: int
    last: int
    rows: int
    used: int


class Fault(msgspec.Struct, frozen=True):
    """Something about a file of an archive that is not as it should be.

    Attributes:
        location: Where the archive is.
        name: The file's name there.
        code: ``depot-file-missing``, ``depot-file-changed``, ``depot-unavailable`` or ``depot`` (it refuses), as the
            error that reading it raises; ``orphan``: no event is read from it; ``manifest``: the list of files is old.
        reason: In words.
    """

    location: str
    name: str
    code: str
    reason: str

    @property
    def is_loss(self) -> bool:
        """Whether events cannot be read because of it."""
        return self.code not in ("orphan", "manifest")


class ArchivesVerified(msgspec.Struct, frozen=True):
    """What a verification of the archives has seen.

    Attributes:
        files: How many files were as they should be.
        faults: What was not.
        cleaned: How many orphans were deleted, and manifests written anew.
    """

    files: int
    faults: tuple[Fault, ...]
    cleaned: int = 0

    @property
    def whole(self) -> bool:
        """Whether all events can be read."""
        return not any(fault.is_loss for fault in self.faults)


class Archives:
    """The archives of a log; `Log.archives` is one."""

    def __init__(self, log: Log) -> None:
        self._log = log

    @property
    def _reader(self) -> ArchiveReader:
        return self._log.bodies.archived()

    @property
    def ledger(self) -> Ledger:
        """What was decided and done."""
        return self._reader.ledger

    @property
    def timeout(self) -> float:
        """The longest wait for an object store, in seconds (default: 30). Settable, also as ``"5s"``."""
        return self._reader.timeout

    @timeout.setter
    def timeout(self, timeout: Duration | float) -> None:
        self._reader.timeout = seconds(timeout) or 0.001

    def locations(self) -> tuple[str, ...]:
        """Where the log's archives are."""
        return tuple(self.ledger.refresh().archives.values())

    def files(self) -> Iterator[ArchivedFile]:
        """The files of all archives, in the order in which they were made, without looking at the archives."""
        ledger = self.ledger.refresh()
        used = self._used()
        for (archive, name), event in list(ledger.files.items()):
            yield _file(ledger, event, sum(pointer.rows for pointer in used.get((archive, name), ())))

    def _used(self) -> dict[tuple[str, str], list[Pointer]]:
        found: dict[tuple[str, str], list[Pointer]] = {}
        for _, _, data in self._log.store.placeholders(Encoding.ARCHIVED):
            pointer = pointer_of(data, 0)
            found.setdefault((pointer.archive, pointer.file), []).append(pointer)
        return found

    # --- verify ---------------------------------------------------------------------------------------

    def verify(self, *, clean: bool = False, older_than: Duration = "1d", by: str | None = None) -> ArchivesVerified:
        """Fetch every file that events are read from, and compare its checksum; look for what else is there.

        Args:
            clean: Delete orphans: files that no event is read from, left by an archiving that was killed, or because
                their events were restored or trimmed. An older copy of the log may still need them. Files that
                another log has listed in the manifest, one with the same past, are no orphans.
            older_than: Only orphans that were written so long ago: a younger one may be about to be used. At least
                an hour.
            by: Who cleans; default: the user of the operating system.
        """
        self._reader.close()
        ledger = self.ledger.refresh()
        who = check_by(by)
        age = max(duration_micros(older_than) / 1e6, 3_600.0)
        faults: list[Fault] = []
        whole = cleaned = 0
        # Files that are there first, then those that are used: one that is put there in between is no orphan.
        there = {archive: self._listed(archive, location, faults) for archive, location in ledger.archives.items()}
        used = self._used()
        for (archive, name), pointers in used.items():
            if there.get(archive) is None:
                continue
            try:
                self._reader.checked(self._reader.files(archive), pointers[0])
                whole += 1
            except DepotError as error:
                location = ledger.archives[archive]
                faults.append(Fault(location, name, error.code, error.message))
        for archive, entries in there.items():
            if entries is None:
                continue
            try:
                others = self._others(archive)
            except DepotError as error:
                faults.append(Fault(ledger.archives[archive], MANIFEST, "manifest", error.message))
                continue
            for entry in entries:
                name = entry.name.removeprefix(f"{archive}/")
                if (archive, name) in used or name == MANIFEST or name in others:
                    continue
                if clean and entry.age >= age:
                    cleaned += self._delete(archive, name, who)
                else:
                    faults.append(Fault(ledger.archives[archive], name, "orphan", "no event is read from it"))
            if not self._manifest_is_right(archive, others):
                if clean:
                    self.write_manifest(archive)
                    cleaned += 1
                else:
                    faults.append(Fault(ledger.archives[archive], MANIFEST, "manifest", "it is out of date"))
        return ArchivesVerified(whole, tuple(faults), cleaned)

    def _listed(self, archive: str, location: str, faults: list[Fault]) -> list[Entry] | None:
        try:
            return list(self._reader.files(archive).depot.list(archive))
        except DepotError as error:
            faults.append(Fault(location, "", error.code, error.message))
            return None

    def _delete(self, archive: str, name: str, by: str) -> int:
        if (archive, name) in self.ledger.files:
            self.ledger.tell(ArchiveCleaned(archive=archive, files=[name], by=by))
        self._reader.files(archive).delete(name_of(archive, name))
        return 1

    # --- the manifest -----------------------------------------------------------------------------------

    def write_manifest(self, archive: str) -> None:
        """Write the list of an archive's files, a JSON object a line, as the log has it.

        What another log has put there, one that was restored or copied from this or this from it, stays listed.
        """
        text = b""
        while text != (text := self._manifest(archive, self._others(archive))):
            self._reader.files(archive).put(name_of(archive, MANIFEST), text)

    def _manifest(self, archive: str, others: Mapping[str, bytes]) -> bytes:
        ledger = self.ledger.refresh()
        lines = [
            _encode({
                "file": event.file, "sha256": event.sha256, "size": event.size, "stream": event.stream,
                "type": event.kind, "layout": event.layout, "first": event.first, "last": event.last,
                "rows": event.rows, "runs": event.runs,
            })
            for (which, _), event in ledger.files.items()
            if which == archive
        ]  # fmt: skip
        return b"".join(line + b"\n" for line in (*lines, *others.values()))

    def _listing(self, archive: str) -> bytes:
        try:
            return self._reader.files(archive).depot.get(name_of(archive, MANIFEST))
        except DepotFileMissing:
            return b""

    def _others(self, archive: str) -> dict[str, bytes]:
        """The lines of an archive's manifest about files that this log has never had, by their names."""
        ledger, found = self.ledger, {}
        for line in self._listing(archive).splitlines():
            try:
                file = _name(line).file
            except msgspec.MsgspecError:
                continue
            if (archive, file) not in ledger.files and (archive, file) not in ledger.cleaned:
                found[file] = line
        return found

    def _manifest_is_right(self, archive: str, others: Mapping[str, bytes]) -> bool:
        # Each of several logs begins with its own files.
        wanted = self._manifest(archive, others).splitlines()
        return sorted(self._listing(archive).splitlines()) == sorted(wanted)

    # --- relocate, restore ------------------------------------------------------------------------------

    def relocate(self, old: str, new: str, *, by: str | None = None) -> None:
        """Say that an archive, with all its files, is at another location now.

        Args:
            old: Where it was, as `locations` gives it.
            new: Where it is: a folder, or a URL such as ``"s3://bucket/prefix"``.
            by: Who moved it; default: the user of the operating system.

        Raises:
            NotFound: The log has no archive at the old location.
            DepotError: It is not at the new one, or that cannot be reached; nothing is changed.
        """
        who, target = check_by(by), check_location(new)
        source = check_location(old)
        ledger = self.ledger.refresh()
        found = [archive for archive, location in ledger.archives.items() if location == source]
        if not found:
            raise NotFound(f"there is no archive at {source}", hint="log.archives.locations() gives those that are")
        depot = open_depot(target, timeout=self.timeout)
        used = self._used()
        for archive in found:
            there = {entry.name for entry in depot.list(archive)}
            for which, name in used:
                if which == archive and name_of(archive, name) not in there:
                    raise DepotFileMissing(target, name)
        for archive in found:
            ledger.tell(ArchiveMoved(archive=archive, location=target, by=who))
        self._reader.close()

    def take_over(self, told: Iterable[tuple[str, bytes]]) -> None:
        """Say again what a log that begins like this one has said later of bodies that are in both.

        Args:
            told: Types and JSON of its events in ``$retention`` that this log does not have, in order.
        """
        used, end = self._used(), self._log.head
        archives = {archive for archive, _ in used}
        trimmed = any(True for _ in self._log.store.placeholders(Encoding.TRIMMED))
        found: list[Event] = []
        for type, text in told if archives or trimmed else ():
            event = decoded(type, text)
            if isinstance(event, ArchiveAdded | ArchiveMoved):
                wanted = event.archive in archives
            elif isinstance(event, RunsArchived):
                wanted = (event.archive, event.file) in used
            elif isinstance(event, RunsTrimmed) and trimmed:
                # No floor: what the other trimmed after the copy of it was made is here.
                parts = [
                    msgspec.structs.replace(part, last=min(part.last, end), floor=0)
                    for part in event.parts
                    if part.first <= end
                ]
                event, wanted = msgspec.structs.replace(event, parts=parts), bool(parts)
            else:
                continue
            if wanted and event is not None:
                found.append(event)
        if found:
            self.ledger.tell(*found)

    def restore(self, stream: str | None = None, *, by: str | None = None) -> Restored:
        """Put archived events back into the log, each run's hash compared. The files stay where they are.

        It goes on beside writers, in small steps, and can be stopped at any time.

        Args:
            stream: Only this stream, or a category such as ``"sensor-*"``.
            by: Who restores; default: the user of the operating system.

        Raises:
            DepotError: A file is missing or changed, or cannot be had; what was restored before stays.
            StreamNotFound: A stream is named that is not there.
        """
        from .restore import restore

        return restore(self._log, stream, by)


def _file(ledger: Ledger, event: RunsArchived, used: int) -> ArchivedFile:
    return ArchivedFile(
        ledger.archives[event.archive], name_of(event.archive, event.file), event.sha256, event.size, event.stream,
        event.kind, event.first, event.last, event.rows, used,
    )  # fmt: skip
