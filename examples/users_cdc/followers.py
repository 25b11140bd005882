"""What follows the users table: a search index, a cache, a warehouse and notifications, each one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms


class Followers:
    """The four followers of the table, and what they keep in a folder.

    Args:
        folder: Where the index and the warehouse are.
        notify: Called with a text for each user whose address has changed.
    """

    def __init__(self, folder: Path, notify: Callable[[str], object]) -> None:
        self.index = ms.SearchIndex(str(folder / "search.db"), fields=["email", "name"])
        self.cache: dict[str, Any] = {}
        self.warehouse = ms.Warehouse(str(folder / "lake"))
        self.notify = notify

    def follow(self, log: ms.Log) -> ms.Sync:
        """Let all of them follow; each goes on where it was."""
        return ms.sync(
            log,
            "users",
            self.index,
            ms.CacheInvalidation(self.cache, keys=["user:{id}"]),
            self.warehouse,
            ms.Callback(self.address_changed, name="notifications"),
            start=False,
        )

    def address_changed(self, change: ms.Change) -> None:
        """Tell of a new address."""
        if change.operation == "UPDATE" and change.before and change.after:
            old, new = change.before["email"], change.after["email"]
            if old != new:
                self.notify(f"to {old}: your address is {new} now")
