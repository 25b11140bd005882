"""States that hold personal data: snapshots of them are sealed, and what is in memory goes when a key does."""

from __future__ import annotations

from typing import Any

from ..events import definitions, event_classes, present_name
from ..log import Log
from ..log.personal.keys import SNAPSHOT
from ..personal import shape_of
from .model import Model

_SEALED = b"\0"
"""Begins what is sealed; JSON never does."""


class Unreadable(Exception):
    """What was sealed cannot be opened: the key was destroyed, or is not here."""


class Privacy:
    """What of a repository's states must be kept as personal data is."""

    def __init__(self, log: Log, model: Model[Any]) -> None:
        self._log = log
        self._model = model
        self._looked = (-1, -1)
        self._concerned = False

    @property
    def concerned(self) -> bool:
        """Whether states may hold personal data, as far as it was met: once they may, they may for good."""
        known = len(self._log.sealed), definitions()
        if not self._concerned and known != self._looked:
            self._looked = known
            store = self._log.store
            personal = {present_name(store.kind(kind).type) for kind in list(self._log.sealed)}
            if self._log.keys.place is not None:
                # Without a place for keys, none of these can be recorded.
                personal.update(name for name, cls in event_classes().items() if shape_of(cls) is not None)
            types = self._model.types
            self._concerned = bool(personal if types is None else personal & types)
        return self._concerned

    def generation(self) -> Any:
        """What differs when a key was destroyed that states in memory were made with."""
        return self._log.keys.generation if self.concerned else None

    def seal(self, stream: str, state: bytes) -> bytes:
        """A state as it may be kept."""
        return _SEALED + self._log.keys.seal(SNAPSHOT + stream, state) if self.concerned else state

    def open(self, stream: str, kept: bytes) -> bytes:
        """A state that was kept.

        Raises:
            Unreadable: Its key is gone.
        """
        if not kept.startswith(_SEALED):
            return kept
        self._concerned = True
        state = self._log.keys.unseal(SNAPSHOT + stream, kept[1:])
        if state is None:
            raise Unreadable
        return state
