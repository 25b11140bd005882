"""Counts and totals over trailing spans, kept as a balance of each key.

A row counts from its time on, until the span has passed it. So the rows of a batch, and those before that the batch has
gone past, are put into the order of key and time; what a row sees is the balance of its key with what came up to it and
without what went. That is as much work as the batch has rows, however much the span holds. Where loops are compiled and
the keys lie close together, the rows are gone through by their time instead, with the balances in an array.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl

from .columns import NO_TIME, packed_order, time_order
from .compiled import loops, saw, worth_it
from .keys import Ints, KeyIds

_BITS = 63

_RATIO = 8
"""Totals are merged with those before unless these are of so many times more keys."""

_CHUNK = 131_072
"""Rows that are kept together at most, unless they came together."""

_PLACES = 8
"""So many places in an array for each row are faster to go over than it is to put the rows into order."""

_NOTHING = np.zeros(0, np.int64)

Track = tuple[Ints, Ints] | None
"""What the rows that came add to something, and those that are gone take off; None for their number."""


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """Rows that came about the same time: the numbers of their keys, their times, and what else is added up."""

    ids: Ints
    at: Ints
    values: tuple[Ints, ...]
    oldest: int
    newest: int

    def by_time(self) -> tuple[Chunk, Ints | None]:
        """The rows by time; and where each of them was, None where they are in that order."""
        order = time_order(self.at)
        if order is None:
            return self, None
        values = tuple(each[order] for each in self.values)
        return Chunk(self.ids[order], self.at[order], values, self.oldest, self.newest), order


class Totals(msgspec.Struct, frozen=True, eq=False):
    """What some keys come to, by ascending number: the total of each value."""

    keys: Ints
    sums: tuple[Ints, ...]

    def find(self, keys: Ints) -> tuple[Ints, Ints]:
        """Where these keys, ascending, stand or would stand, and which of them are there."""
        places = self.keys.searchsorted(keys)
        if not len(self.keys):
            return places, np.zeros(len(keys), bool)
        return places, self.keys[np.minimum(places, len(self.keys) - 1)] == keys

    def updated(self, newer: Totals, places: Ints, there: Ints) -> Totals:
        """With what some of the keys come to now, given where these keys are."""
        where, fresh = places[there], ~there
        # Those that are not there yet go before what stands at their places.
        new = places[fresh] + np.arange(int(fresh.sum()))
        old = np.ones(len(self.keys) + len(new), bool)
        old[new] = False

        def both(older: Ints, newer: Ints) -> Ints:
            out = np.empty(len(old), older.dtype)
            out[old] = older
            out[new] = newer
            return out

        sums = []
        for older, now in zip(self.sums, newer.sums, strict=True):
            changed = older.copy()
            changed[where] = now[there]
            sums.append(both(changed, now[fresh]))
        return Totals(both(self.keys, newer.keys[fresh]), tuple(sums))

    def some(self) -> Totals:
        """Without keys that come to nothing, as those do that have no row any more."""
        some = self.sums[0] != 0
        for each in self.sums[1:]:
            some |= each != 0
        return self if some.all() else Totals(self.keys[some], tuple(each[some] for each in self.sums))


class Balances(msgspec.Struct, frozen=True, eq=False):
    """The settled rows of the last span, and what each key comes to."""

    ids: KeyIds
    chunks: tuple[Chunk, ...] = ()
    totals: tuple[Totals, ...] = ()
    """The newest last: a key comes to what the last that has it says."""
    passed: int = NO_TIME
    """What the span had passed at this time is taken off."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(len(chunk.at) for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        held = [values for chunk in self.chunks for values in (chunk.ids, chunk.at, *chunk.values)]
        held += [values for each in self.totals for values in (each.keys, *each.sums)]
        return sum(values.nbytes for values in held)

    def step(
        self, rows: pl.DataFrame, at: Ints, values: Sequence[Ints | None], size: int, *, inclusive: bool
    ) -> tuple[Balances, list[Ints]]:
        """Take in settled rows, later than all before.

        Args:
            at: Their times.
            values: What is added up; None for the rows themselves.
            size: The span.
            inclusive: Whether a row of exactly the span's length ago counts.

        Returns:
            The balances then; and for each row what the values of those of its key come to that are in the span that
            ends with it. Rows of one key and time see each other.
        """
        fit = self._fit(rows)
        numbers = tuple(each for each in values if each is not None)
        came = Chunk(fit.ids.encode(rows), at, numbers, int(at.min()), int(at.max()))
        gone = _together(fit._gone(came, came.newest - size), len(numbers))
        saw(len(at))
        among = fit._among(came, gone) if worth_it(len(at)) else None
        order = None
        if among is not None:
            came, order = came.by_time()
            gone, _ = gone.by_time()
        waiting = iter(zip(came.values, gone.values, strict=True))
        tracks = [next(waiting) if value is not None else None for value in values]
        if among is not None:
            totals, found = fit._gone_through(came, gone, tracks, size, inclusive, *among)
        else:
            totals, found = fit._put_in_order(came, gone, tracks, size, inclusive)
        if order is not None:
            found = [_placed(each, order) for each in found]
        return Balances(fit.ids, fit._with(came, size), totals, came.newest), found

    def hold(self, rows: pl.DataFrame, at: Ints, values: Sequence[Ints], size: int) -> Balances:
        """Take in settled rows of a state that is taken up again; see `step`. What their keys come to is added up
        once all are there, by `added_up`."""
        fit = self._fit(rows)
        came = Chunk(fit.ids.encode(rows), at, tuple(values), int(at.min()), int(at.max()))
        return Balances(fit.ids, fit._with(came, size), passed=max(fit.passed, came.newest))

    def added_up(self, size: int, *, counted: bool) -> Balances:
        """With what each key comes to by the rows that are held.

        Args:
            counted: Whether rows themselves are counted, before all values.
        """
        if not self.chunks:
            return self
        held = _together(self.chunks, len(self.chunks[0].values))
        columns = {"key": held.ids, **{f"v{place}": each for place, each in enumerate(held.values)}}
        if held.oldest <= self.passed - size:
            alive = held.at > self.passed - size
            columns = {name: each[alive] for name, each in columns.items()}
        sums = [pl.len().cast(pl.Int64).alias("rows")] if counted else []
        sums += [pl.col(f"v{place}").sum().cast(pl.Int64, wrap_numerical=True) for place in range(len(held.values))]
        keys, *found = pl.DataFrame(columns).group_by("key").agg(sums).sort("key")
        totals = Totals(keys.to_numpy(), tuple(each.to_numpy() for each in found)).some()
        return msgspec.structs.replace(self, totals=(totals,))

    def _among(self, came: Chunk, gone: Chunk) -> tuple[int, int] | None:
        """The least key and the greatest; None where an array of all between would be too long."""
        # A key that has come to nothing is in no total, and may still have rows that will be gone.
        keys = [each for each in (came.ids, gone.ids, *(totals.keys for totals in self.totals)) if len(each)]
        low, high = min(int(each.min()) for each in keys), max(int(each.max()) for each in keys)
        return (low, high) if high - low < _PLACES * len(came.ids) else None

    def _gone_through(
        self, came: Chunk, gone: Chunk, tracks: Sequence[Track], size: int, inclusive: bool, low: int, high: int
    ) -> tuple[tuple[Totals, ...], list[Ints]]:
        """The totals then and what each row sees, by going through rows in the order of time."""
        found, sums = [], []
        for place, track in enumerate(tracks):
            more, less = (_NOTHING, _NOTHING) if track is None else track
            balances = np.zeros(high - low + 1, np.int64)
            for totals in self.totals:
                balances[totals.keys - low] = totals.sums[place]
            seen = np.empty(len(came.at), np.int64)
            loops().balance(came.ids, came.at, more, gone.ids, gone.at, less, size, inclusive, low, balances, seen)
            found.append(seen)
            sums.append(balances)
        some = np.flatnonzero(np.logical_or.reduce(sums) if len(sums) > 1 else sums[0])
        return (Totals(some + low, tuple(each[some] for each in sums)),), found

    def _put_in_order(
        self, came: Chunk, gone: Chunk, tracks: Sequence[Track], size: int, inclusive: bool
    ) -> tuple[tuple[Totals, ...], list[Ints]]:
        """The same, by putting rows into the order of key and time."""
        # What is equal stays in its order: where a row of exactly the span's length ago counts, it goes last.
        pairs = [(came.ids, gone.ids), (came.at, gone.at + size)]
        pairs += [(track[0], -track[1]) for track in tracks if track is not None]
        # To write into new arrays part by part would take a third more.
        ids, when, *changes = (np.concatenate(pair if inclusive else pair[::-1]) for pair in pairs)
        split = len(came.at) if inclusive else len(gone.at)
        order, keys, heads = _in_order(ids, when)
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
        known, counts = keys[ends], np.diff(ends, prepend=-1)
        is_second = order >= split
        is_same = heads[1:] == heads[:-1]
        is_same &= is_second[1:] == is_second[:-1]
        same = np.flatnonzero(is_same)
        if len(same):
            lasts = np.flatnonzero(np.append(~is_same, True))
            lasts = lasts[lasts.searchsorted(same)]
        found, sums = [], []
        finds = [totals.find(known) for totals in self.totals]
        waiting = iter(changes)
        for place, track in enumerate(tracks):
            change = next(waiting)[order] if track is not None else _ones(is_second, inclusive)
            reached = change.cumsum()
            at_ends = reached[ends]
            after = self._held(finds, place, len(known)) + np.diff(at_ends, prepend=0)
            reached += np.repeat(after - at_ends, counts)
            sums.append(after)
            if len(same):
                reached[same] = reached[lasts]
            out = _placed(reached, order)
            found.append(out[:split] if inclusive else out[split:])
        return self._newer(Totals(known, tuple(sums)), finds), found

    def _fit(self, rows: pl.DataFrame) -> Balances:
        """With numbers that these keys fit."""
        stale = not self.ids.direct and self.ids.count > 4 * self.rows + 100_000
        return self if not stale and self.ids.takes(rows, _BITS - 1) else self._renumbered()

    def _renumbered(self) -> Balances:
        ids = KeyIds(self.ids.columns, direct=False)
        if not self.chunks:
            return msgspec.structs.replace(self, ids=ids, totals=())
        numbers = np.unique(np.concatenate([chunk.ids for chunk in self.chunks]))
        new = ids.encode(self.ids.decode(numbers))
        chunks = [msgspec.structs.replace(each, ids=new[numbers.searchsorted(each.ids)]) for each in self.chunks]
        if not self.totals:
            return Balances(ids, tuple(chunks), (), self.passed)
        order = np.argsort(new)
        finds = [totals.find(numbers) for totals in self.totals]
        sums = [self._held(finds, track, len(numbers))[order] for track in range(len(self.totals[0].sums))]
        return Balances(ids, tuple(chunks), (Totals(new[order], tuple(sums)),), self.passed)

    def _gone(self, came: Chunk, limit: int) -> list[Chunk]:
        """Rows that the span has passed since it was last looked at: those up to a time."""
        before = self.passed - (came.newest - limit)
        gone = []
        for chunk in (*self.chunks, came):
            if chunk.oldest > limit:
                continue
            if chunk.oldest > before and chunk.newest <= limit:
                gone.append(chunk)
                continue
            which = chunk.at <= limit
            if chunk.oldest <= before:
                which &= chunk.at > before
            values = tuple(each[which] for each in chunk.values)
            gone.append(Chunk(chunk.ids[which], chunk.at[which], values, chunk.oldest, limit))
        return gone

    def _held(self, finds: Sequence[tuple[Ints, Ints]], track: int, keys: int) -> Ints:
        """What a value of some keys has come to, given where they are."""
        out = np.zeros(keys, np.int64)
        for totals, (places, there) in zip(self.totals, finds, strict=True):
            out[there] = totals.sums[track][places[there]]
        return out

    def _with(self, came: Chunk, size: int) -> tuple[Chunk, ...]:
        """The rows that are held, with those that have come, and without those that are gone."""
        chunks = [chunk for chunk in self.chunks if chunk.newest > came.newest - size]
        chunks.append(came)
        while len(chunks) > 1 and len(chunks[-2].at) <= min(2 * len(chunks[-1].at), _CHUNK - len(chunks[-1].at)):
            chunks[-2:] = [_together(chunks[-2:], len(came.values))]
        return tuple(chunks)

    def _newer(self, now: Totals, finds: Sequence[tuple[Ints, Ints]]) -> tuple[Totals, ...]:
        """The totals with what some keys come to now, given where these are."""
        totals = [*self.totals, now]
        known = finds[-1] if finds else None
        while len(totals) > 1 and len(totals[-2].keys) <= _RATIO * len(totals[-1].keys):
            newest = totals.pop()
            totals[-1] = totals[-1].updated(newest, *(known or totals[-1].find(newest.keys)))
            known = None
        totals[0] = totals[0].some()
        return tuple(totals)


def _together(chunks: Sequence[Chunk], values: int) -> Chunk:
    """Several as one, oldest first; each has so many values."""
    if len(chunks) == 1:
        return chunks[0]
    if not chunks:
        return Chunk(_NOTHING, _NOTHING, (_NOTHING,) * values, NO_TIME, NO_TIME)
    return Chunk(
        np.concatenate([each.ids for each in chunks]),
        np.concatenate([each.at for each in chunks]),
        tuple(np.concatenate([each.values[i] for each in chunks]) for i in range(values)),
        min(each.oldest for each in chunks),
        max(each.newest for each in chunks),
    )


def _placed(values: Ints, order: Ints) -> Ints:
    """Values that are in this order of places, each at its place."""
    out = np.empty_like(values)
    out[order] = values
    return out


def _ones(is_second: Ints, inclusive: bool) -> Ints:
    """One for each row that has come, and less for each that is gone."""
    return 1 - 2 * is_second if inclusive else 2 * is_second - 1


def _in_order(ids: Ints, when: Ints) -> tuple[Ints, Ints, Ints]:
    """The places by key and time; what is equal stays in its order. With the keys in that order, and a number for key
    and time together."""
    found = packed_order(ids, when)
    if found is not None:
        order, heads, (_, bits) = found
        return order, (heads >> np.uint64(bits)).view(np.int64) + ids.min(), heads
    by = pl.DataFrame({"key": ids, "when": when}).select(pl.arg_sort_by("key", "when", maintain_order=True))
    order = by.to_series().to_numpy()
    keys, when = ids[order], when[order]
    other = (keys[1:] != keys[:-1]) | (when[1:] != when[:-1])
    return order, keys, np.append(0, other.cumsum())
