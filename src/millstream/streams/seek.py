"""The search for matches of a program in the rows of one key, which are in order of time.

The ways to read the rows are tried in order of preference, and the first that leads to an end is the match. A way that
asks for a row that has not come yet, and still may, has to be waited for: then nothing is decided. So the outcome is
the same however the rows came, and so is the time at which it is decided.
"""

from __future__ import annotations

import msgspec

from .columns import END_OF_TIME, NO_TIME
from .conditions import Trail, Value
from .errors import FlowError
from .grammar import Op, Program

FOREVER = END_OF_TIME - 1
"""The time by which a match is decided that may take any time: the past ends before."""

MAX_TRIES = 1_000_000
"""So many ways are tried from one row before a pattern counts as one that cannot be decided."""


class KeyRows(msgspec.Struct, frozen=True, eq=False):
    """The rows of a key from the first that may begin a match. Never changed.

    Attributes:
        at: Their times.
        sequence: Their places in the log.
        mask: The variables that each may fit, by what it says alone.
        values: What conditions and measures need of them.
    """

    at: list[int]
    sequence: list[int]
    mask: list[int]
    values: list[tuple[object, ...]]

    def since(self, index: int) -> KeyRows:
        """Without the first ones."""
        return KeyRows(self.at[index:], self.sequence[index:], self.mask[index:], self.values[index:])


class Hit(msgspec.Struct, frozen=True, eq=False):
    """A match.

    Attributes:
        first: Index of its first row.
        taken: The number of the variable of each of its rows.
        decided: The time at which it was decided.
    """

    first: int
    taken: list[int]
    decided: int


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What could be decided of the rows of a key.

    Attributes:
        hits: The matches, in order.
        start: Index of the row that the next match may begin at.
        deadline: The time by which that is decided, if no row does it before; None when no row is left.
    """

    hits: list[Hit]
    start: int
    deadline: int | None


class Seeker:
    """Looks for a program.

    Args:
        within: The longest time from the first row of a match to its last; None for any.
        conditions: For each variable, the part of its condition that looks back; None where there is none.
        skip: Where the next match may begin: ``"past"`` the last row, at the ``"next"`` one, or at the ``"first"`` or
            ``"last"`` row of a variable.
        of: The number of that variable.
    """

    def __init__(
        self,
        program: Program,
        within: int | None,
        conditions: tuple[Value | None, ...],
        skip: str = "past",
        of: int = 0,
    ) -> None:
        self.program = program
        self.within = within
        self.conditions = conditions
        self._skip = skip
        self._of = of
        self._looks_back = any(condition is not None for condition in conditions)

    def seek(self, rows: KeyRows, watermark: int) -> Outcome:
        """All matches that the rows and the watermark decide."""
        hits: list[Hit] = []
        start, decided, count = 0, NO_TIME, len(rows.at)
        first, masks = self.program.first, rows.mask
        trail = Trail(rows.values)
        while start < count:
            if not masks[start] & first:
                decided = max(decided, rows.at[start])
                start += 1
                continue
            known = self._at(rows, start, watermark, trail)
            if known is None:
                return Outcome(hits, start, self._limit(rows.at[start]))
            found, moment = known
            decided = max(decided, moment)
            if not found:
                start += 1
                continue
            hits.append(Hit(start, list(trail.taken), decided))
            start = self._following(start, trail.taken)
        return Outcome(hits, start, None)

    def _limit(self, start: int) -> int:
        """The last time at which a row of a match may be that begins at a time."""
        return FOREVER if self.within is None else start + self.within

    def _following(self, start: int, taken: list[int]) -> int:
        if self._skip == "next":
            return start + 1
        if self._skip == "past" or self._of not in taken:
            return start + len(taken)
        first, last = taken.index(self._of), len(taken) - 1 - taken[::-1].index(self._of)
        return start + max(first if self._skip == "first" else last, 1)

    def _at(self, rows: KeyRows, start: int, watermark: int, trail: Trail) -> tuple[bool, int] | None:
        """Whether a match begins at a row, and when that is decided; None: not yet. The trail has its rows then."""
        at, masks, steps, conditions = rows.at, rows.mask, self.program.steps, self.conditions
        count, limit = len(at), self._limit(at[start])
        open_ended = limit >= watermark
        # Where the end of the past decides, it does with the last row.
        last = limit if self.within is not None else at[-1]
        far, timed, tries = start, False, 0
        trail.start = start
        taken: list[int] = []
        trail.taken = taken
        # Where it was in vain once it is so again, unless what was taken before has a say.
        seen: set[tuple[int, int]] | None = None if self._looks_back else set()
        ways = [(0, start)]
        while ways:
            step, i = ways.pop()
            del taken[i - start :]
            tries += 1
            if tries > MAX_TRIES:
                raise FlowError(
                    f"pattern {self.program.text!r} can be read in too many ways",
                    hint="Make conditions exclude one another, or quantifiers smaller",
                )
            while True:
                op, one, other = steps[step]
                if op == Op.ROW:
                    if i >= count or at[i] > limit:
                        if i >= count and open_ended:
                            return None
                        timed = True
                        break
                    far = max(far, i)
                    condition = conditions[one]
                    if not masks[i] >> one & 1 or (condition is not None and condition(trail, i) is not True):
                        break
                    taken.append(one)
                    i += 1
                    step += 1
                elif op == Op.EITHER:
                    if seen is not None:
                        if (step, i) in seen:
                            break
                        seen.add((step, i))
                    ways.append((other, i))
                    step = one
                elif op == Op.GO:
                    step = one
                elif op == Op.NONE:
                    j = i
                    while j < count and at[j] <= limit and not self._fits(trail, masks, j, one):
                        j += 1
                    if j < count and at[j] <= limit:
                        far = max(far, j)
                        break
                    if j >= count and open_ended:
                        return None
                    timed = True
                    step += 1
                else:
                    return True, last if timed else at[far]
        return False, last if timed else at[far]

    def _fits(self, trail: Trail, masks: list[int], index: int, variable: int) -> bool:
        condition = self.conditions[variable]
        return bool(masks[index] >> variable & 1) and (condition is None or condition(trail, index) is True)
