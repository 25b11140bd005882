"""The performer of a read model's effects: beside the worker that keeps the rows, which do not wait for the outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from .effects import TABLE, Effect
from .errors import in_words
from .lease import Lease
from .places import Target
from .projection import Placement

_AT_ONCE = 20
_LONGEST = 0.1
"""How many effects are performed, at most, and for how many seconds, before it is noted."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0
_LOOK = 0.5
"""How soon, in seconds, effects are found that nobody has told of: of an event that another process has settled."""
_WAY = 0.2
"""The longest, in seconds, that rows wait for it to be noted what was performed."""


class Performer:
    """Performs the effects of a read model, for the one worker that keeps it, in the order of events.

    It has a thread of its own, from `start` until `end` is called, the lease is lost, or the process ends. What is
    being performed then is not broken off, and nothing is begun after it: `wait` before somebody else may begin.

    Args:
        targets: Where effects are noted: the versions that have left some over, which nobody keeps, and the one that
            answers. What each of them has lies between what others have, after a rollback.
        lease: Without it nothing is begun.
        before: The one who did so until now, and may still be at it.

    Attributes:
        error: Why the next one could not be performed, if it could not.
    """

    def __init__(
        self,
        placement: Placement,
        targets: Sequence[Target],
        perform: Callable[[Effect], object],
        lease: Lease,
        before: Performer | None = None,
    ) -> None:
        self._name = placement.name
        self._targets = list(targets)
        self._perform = perform
        self._lease = lease
        self._before = before
        self._pause = _FIRST_PAUSE
        self._done: list[tuple[Effect, Target]] = []
        """What was performed, and is still to be noted."""
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._noting = threading.Event()
        self._noted = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def start(self) -> None:
        """Begin, once the one before has ended."""
        self._thread = threading.Thread(target=self._run, name=f"millstream-effects-{self._name}", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """Say that effects may have been noted; and let it note what was performed, if it waits for that."""
        self._woken.set()
        if self._noting.is_set():
            self._noted.wait(_WAY)

    def end(self) -> None:
        """Begin nothing more. Does not wait."""
        self._ending.set()
        self._woken.set()

    @property
    def is_busy(self) -> bool:
        """Whether something is being performed, or noted, still."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until what is being performed is done, and noted."""
        if self._thread is not None:
            self._thread.join()

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._lease.lost.is_set()

    def _run(self) -> None:
        if self._before is not None:
            self._before.wait()
            self._before = None
        while not self._is_over():
            self._woken.clear()
            pause = _LOOK
            try:
                if self._perform_some():
                    continue
            except BaseException as error:  # sys.exit(), and what asyncio cancels, would end this thread unseen
                self.error = in_words(error)
                pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
                self._ending.wait(pause)
                continue
            self._woken.wait(pause)
        self._note_last()

    def _perform_some(self) -> bool:
        """Perform what is noted, for a moment or until one fails; whether there may be more."""
        self._note()
        found = self._next()
        until = time.monotonic() + _LONGEST
        try:
            for effect, target in found:
                if self._is_over() or not self._lease.is_ours():
                    break
                self._perform(effect)
                self._done.append((effect, target))
                if time.monotonic() >= until:
                    break
        finally:
            self._note()
        self.error, self._pause = None, _FIRST_PAUSE
        return bool(found)

    def _note(self) -> None:
        """Note what was performed. What cannot be noted now is not performed again, but noted before anything else."""
        if not self._done:
            return
        self._noted.clear()
        self._noting.set()
        try:
            for target in dict.fromkeys(target for _, target in self._done):
                rows = [
                    (self._name, each.position, int(each.id.rpartition(":")[2]))
                    for each, of in self._done
                    if of is target
                ]
                target.transact(
                    lambda db, rows=rows: db.executemany(  # type: ignore[misc]
                        f"delete from {db.own(TABLE)} where name = ? and position = ? and n = ?", rows
                    )
                )
                self._done = [each for each in self._done if each[1] is not target]
        finally:
            self._noting.clear()
            self._noted.set()

    def _note_last(self) -> None:
        """The same at the end, when nobody tries it again but whoever is next, by performing it again."""
        for pause in (0.1, 0.5, 0.0):
            try:
                self._note()
                return
            except Exception as error:
                self.error = in_words(error)
                time.sleep(pause)

    def _next(self) -> list[tuple[Effect, Target]]:
        """The effects that are next, in the order of events, and where each of them is noted."""
        noted = [(target, self._noted_in(target)) for target in self._targets]
        # Nobody keeps versions before: what they have becomes less.
        self._targets = [target for target, effects in noted if effects or target is self._targets[-1]]
        found = [(effect, target) for target, effects in noted for effect in effects]
        return sorted(found, key=lambda each: (each[0].position, int(each[0].id.rpartition(":")[2])))[:_AT_ONCE]

    def _noted_in(self, target: Target) -> list[Effect]:
        with target.reading() as db:
            if not db.has_table(TABLE):
                return []
            rows = db.query(
                f"select position, n, body from {db.own(TABLE)} where name = ? order by position, n limit {_AT_ONCE}",
                (self._name,),
            )
        return [
            Effect(f"{self._name}:{row['position']}:{row['n']}", msgspec.json.decode(row["body"]), row["position"])
            for row in rows
        ]
