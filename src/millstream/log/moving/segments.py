"""A log as segments in a depot: pages in files whose names say which positions they hold.

A segment is ``FIRST-LAST-SHA256.page``: two positions of 20 digits and the digest of its bytes. Its bytes are ``MILL``,
a byte for the form (1), a byte for the compression (0: none, 1: zlib) and a `RawPage` in MessagePack. A segment without
events (append ids, consumers' state) has a LAST that is FIRST - 1. ``head.json`` is written after each segment and says
how far they reach; it only saves a listing.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Container
from itertools import accumulate
from typing import NamedTuple

import msgspec

from ...conversion import ready
from ...errors import DamagedLog, DepotError, DepotFileMissing, NotAPrefix, NotFound
from ...storage.base import Encoding, Head
from ...storage.raw import EMPTY, PAGE_BYTES, PAGE_RUNS, RawHead, RawPage, Role, State, check_chain
from ..depots import Depot, open_depot

_MAGIC = b"MILL\x01"
_SUFFIX = ".page"
_HEAD = "head.json"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RawPage).decode


class Segment(NamedTuple):
    """A segment's name, taken apart."""

    name: str
    first: int
    last: int
    digest: str


class _Mark(msgspec.Struct):
    """What ``head.json`` says."""

    log_id: str
    position: int
    recorded: int
    hash: str
    segment: str
    state: str = ""
    """The segment that gave consumers' state last."""


class Segments:
    """A log's copy in a depot: can be copied to, and copied or restored from.

    Two copies that write to one depot at once do no harm: segments of one log agree wherever they overlap.

    Args:
        depot: Where; an address or a path is opened with `open_depot`.
    """

    def __init__(self, depot: Depot | str) -> None:
        self._depot = open_depot(depot) if isinstance(depot, str) else depot
        self._found: list[Segment] = []
        self._farthest: list[Segment] = []
        """For each of them, the one that goes farthest of it and all before."""
        self._end: RawHead | None = None
        self._page: tuple[str, RawPage] | None = None
        self._state = ""

    @property
    def location(self) -> str:
        """The address of the depot."""
        return self._depot.location

    # --- reading ----------------------------------------------------------------------------------------

    def raw_head(self) -> RawHead:
        """Where the copy ends; of an empty one, the log id is empty.

        Raises:
            NotFound: The depot is empty.
        """
        if self._end is None:
            self._end = self._look()
        return self._end

    def refresh(self) -> None:
        """Look for what others have put there."""
        self._end = None

    def _look(self) -> RawHead:
        start = Segment("", 1, 0, "")
        mark = self._mark()
        if mark is not None:
            start = _parsed(mark.segment) or start
            self._state = mark.state
        newest = [each for entry in self._depot.list(after=start.name) if (each := _parsed(entry.name))]
        for each in newest:  # put, and not marked any more
            if self._read(each).state is not None:
                self._state = each.name
        end = max([start, *newest], key=lambda each: (each.last, each.first))
        if not end.name:
            return RawHead("", EMPTY)
        page = self._read(end)
        return RawHead(page.log_id, page.head, Role("replica"))

    def _mark(self) -> _Mark | None:
        try:
            return msgspec.json.decode(self._depot.get(_HEAD), type=ready(_Mark))
        except DepotFileMissing:
            return None
        except msgspec.MsgspecError as error:
            raise DepotError(self.location, f"{_HEAD} is damaged", hint="Remove it; it is made anew") from error

    def segments(self) -> list[Segment]:
        """All segments, by first position."""
        return [each for entry in self._depot.list() if (each := _parsed(entry.name))]

    def _read(self, segment: Segment) -> RawPage:
        if self._page is not None and self._page[0] == segment.name:
            return self._page[1]
        try:
            data = self._depot.get(segment.name)
        except DepotFileMissing as error:
            raise DamagedLog(segment.first, f"segment {segment.name} is missing") from error
        if hashlib.sha256(data).hexdigest() != segment.digest or not data.startswith(_MAGIC):
            raise DamagedLog(segment.first, f"segment {segment.name} does not match its hash")
        body = data[len(_MAGIC) + 1 :]
        try:
            page = _decode(zlib.decompress(body) if data[len(_MAGIC)] else body)
        except (msgspec.MsgspecError, zlib.error) as error:
            raise DamagedLog(segment.first, f"segment {segment.name} cannot be read ({error})") from error
        self._page = (segment.name, page)
        return page

    def raw_header(self, position: int) -> tuple[int, Head] | None:
        """See `RawSource.raw_header`."""
        segment = self._holding(position)
        if segment is not None:
            for run in self._read(segment).runs:
                if run.position <= position <= run.last:
                    return run.position, Head(run.last, run.recorded, run.hash)
        return None

    def position_at(self, micros: int) -> int:
        """The last position recorded strictly before a time."""
        found = [each for each in self.segments() if each.last >= each.first]
        low, high = 0, len(found)
        while low < high:
            middle = (low + high) // 2
            if self._read(found[middle]).runs[0].recorded < micros:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return 0
        before = [run.last for run in self._read(found[low - 1]).runs if run.recorded < micros]
        return before[-1]

    def raw_page(
        self,
        after: int,
        *,
        until: int | None = None,
        known: Container[int] = (),
        state: bool = False,
        limit_runs: int = PAGE_RUNS,
        limit_bytes: int = PAGE_BYTES,
    ) -> RawPage:
        """See `RawSource.raw_page`; the pages are as they were put, whatever the limits."""
        segment = self._holding(after + 1)
        if segment is not None:
            page = self._read(segment).since(after)
            if page.after.position != after:
                raise DamagedLog(after, "no run ends there")
            end = self.raw_head().head.position
            if page.head.position < end:
                page = msgspec.structs.replace(page, level=False, state=None, state_current=False)
            else:
                page = self._with_latest(page)
            return page.until(until) if until is not None else page
        return self._tail(after)

    def _holding(self, position: int) -> Segment | None:
        """A segment that holds a position, the one that goes farthest."""
        if not self._found or position > self._farthest[-1].last:
            self._found = self.segments()
            self._farthest = list(accumulate(self._found, _farther))
        at = bisect_right(self._found, position, key=lambda each: each.first)
        return self._farthest[at - 1] if at and self._farthest[at - 1].last >= position else None

    def _tail(self, after: int) -> RawPage:
        found = self.raw_header(after) if after else (0, EMPTY)
        if found is None or found[1].position != after or after < self.raw_head().head.position:
            raise DamagedLog(after + 1, f"no segment in {self.location} holds this position")
        segment = self._holding(after) if after else None
        current = segment is not None and self._read(segment).state_current
        return self._with_latest(RawPage(log_id=self.raw_head().log_id, after=found[1], state_current=current))

    def _with_latest(self, page: RawPage) -> RawPage:
        """A page that reaches the end, with what the segments without events have added there."""
        position = page.head.position
        page = msgspec.structs.replace(page, level=True)
        at = bisect_left(self._found, (position + 1,), key=lambda each: (each.first,))
        for segment in self._found[at:]:
            if segment.first > position + 1:
                break
            if segment.last == position:
                extra = self._read(segment)
                page.appends = [*page.appends, *extra.appends]
                page.state_current = page.state_current or extra.state_current
        page.state = self.raw_state()
        return page

    # --- writing ----------------------------------------------------------------------------------------

    def raw_bodies(self) -> set[int]:
        """None are counted on: a body that is given again does no harm."""
        return set()

    def raw_state(self) -> State | None:
        """See `RawTarget.raw_state`."""
        self.raw_head()
        segment = _parsed(self._state)
        return self._read(segment).state if segment is not None else None

    def place_raw(self, page: RawPage, place: str = "") -> Head:
        """Put a page as a segment, atomically; see `RawTarget.place_raw`."""
        found = self.raw_head()
        if found.log_id and found.log_id != page.log_id:
            raise NotAPrefix(self.location, "it holds the copy of another log")
        if found.head.position != page.after.position or found.head.hash != page.after.hash:
            raise NotAPrefix(
                self.location,
                f"it ends at position {found.head.position}, and this page continues {page.after.position}",
            )
        check_chain(page)
        data = _packed(page)
        first = page.after.position + 1
        name = f"{first:020d}-{page.head.position:020d}-{hashlib.sha256(data).hexdigest()}{_SUFFIX}"
        self._depot.put(name, data)
        head = page.head
        if page.state is not None:
            self._state = name
        mark = _Mark(page.log_id, head.position, head.recorded, head.hash.hex(), name, self._state)
        self._depot.put(_HEAD, msgspec.json.encode(mark))
        self._end = RawHead(page.log_id, head, Role("replica"))
        return head

    def wait(self, after: int, timeout: float) -> bool:
        """Wait until there is more than up to a position."""
        deadline = time.monotonic() + timeout
        while True:
            self.refresh()
            if self.raw_head().head.position > after:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, 1.0))


def _farther(one: Segment, other: Segment) -> Segment:
    return one if one.last > other.last else other


def _packed(page: RawPage) -> bytes:
    body = _encode(page)
    columns = sum(len(each.data) for each in page.bodies.values() if each.encoding == Encoding.ARROW)
    if columns > len(body) // 2:  # they are compressed already
        return _MAGIC + b"\x00" + body
    return _MAGIC + b"\x01" + zlib.compress(body, 1)


def _parsed(name: str) -> Segment | None:
    parts = name.removesuffix(_SUFFIX).split("-")
    if not name.endswith(_SUFFIX) or len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return Segment(name, int(parts[0]), int(parts[1]), parts[2])


def open_segments(place: str) -> Segments:
    """A copy that is there.

    Raises:
        NotFound: There are no segments at that place.
    """
    found = Segments(place)
    if not found.raw_head().log_id:
        raise NotFound(f"there is no copy of a log at {place}", hint="Make one with: millstream copy LOG PLACE")
    return found
