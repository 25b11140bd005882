"""Several appends, and SQL on the log's database, in one commit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

from ..errors import UsageError
from ..storage.base import Matching, Receipt, Request, StagedAppend
from ..storage.database import Database
from ..time import Moment
from .staging import check_label, digest_of, stage

if TYPE_CHECKING:
    from .log import Log


def check_outside(log: Log) -> None:
    """See that this thread is in no transaction of the log: what it appends beside that would be a commit of its own.

    Raises:
        UsageError: It is in one.
    """
    if threading.get_ident() in log.inside:
        raise UsageError(
            "this thread is inside a transaction of the same log",
            hint="Append through the transaction (tx.append), or after it",
        )


def is_inside(log: Log) -> bool:
    """Whether this thread is in a transaction of the log, or in a commit, as inline handlers are."""
    return threading.get_ident() in log.inside or log.store.committer.is_led_here


class Transaction:
    """Made by `Log.transaction`; use it in a ``with`` block. Everything in it is committed at its end, or nothing.

    Appends are buffered until then. The first use of `db` takes the log's writer lock, and from there on other
    writers wait: keep what follows short.
    """

    def __init__(self, log: Log, id: str | None, digest: bytes | None = None) -> None:
        self._log = log
        self._digest = digest
        self._id = check_label(id, "append id") if id is not None else None
        self._appends: list[StagedAppend] = []
        self._open: AbstractContextManager[Any] | None = None
        self._writer: Any = None
        self._receipt: Receipt | None = None
        self._entered = self._used = False
        self._thread = 0

    def append(
        self,
        stream: str,
        events: object,
        *,
        type: str | None = None,
        expect: int | None = None,
        unless: Matching | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        effective: Moment | None = None,
    ) -> None:
        """Add events to the commit; see `Log.append`. Conditions are checked when it is committed.

        ``expect`` counts what the same transaction appends to the stream before.
        """
        if not self._entered:
            raise UsageError("the transaction is not open", hint="Use it inside `with log.transaction() as tx:`")
        self._appends.append(
            stage(
                stream, events, type=type, expect=expect, unless=unless, tags=tags, metadata=metadata,
                correlation=correlation, causation=causation, effective=effective, keys=self._log.keys,
            )
        )  # fmt: skip

    def add(self, staged: StagedAppend) -> None:
        """Add what `Log.stage` or a repository staged."""
        self._appends.append(staged)

    @property
    def db(self) -> Database:
        """The log's database, in the transaction of the appends.

        Raises:
            LogLocked: Other writers held it for longer than the log's ``lock_timeout``.
        """
        if not self._entered:
            raise UsageError("the transaction is not open", hint="Use it inside `with log.transaction() as tx:`")
        if self._writer is None:
            opened = self._log.store.transaction()
            self._writer = opened.__enter__()
            self._open = opened  # once it is: whoever could not have it may go on without
        return self._writer.database  # type: ignore[no-any-return]

    @property
    def receipt(self) -> Receipt:
        """The receipt of the whole, once it is committed."""
        if self._receipt is None:
            raise UsageError("the transaction is not committed", hint="Ask after its `with` block has ended")
        return self._receipt

    def __enter__(self) -> Self:
        if self._used:
            raise UsageError("a transaction can be used once", hint="Make another one with log.transaction()")
        check_outside(self._log)
        self._entered = self._used = True
        self._thread = threading.get_ident()
        self._log.inside.add(self._thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._entered = False
        self._log.inside.discard(self._thread)
        if self._open is None:
            if error is None:
                self._receipt = self._log.store.commit(self._request())
            return
        if error is None:
            try:
                self._receipt = self._writer.finish(self._request())
            except BaseException as failure:
                self._open.__exit__(type(failure), failure, failure.__traceback__)
                raise
            self._open.__exit__(None, None, None)
        else:
            # The block's own error goes on to the caller; here it only undoes the transaction.
            try:
                self._open.__exit__(kind, error, trace)
            except BaseException as same:
                if same is not error:
                    raise

    def _request(self) -> Request:
        digest = b""
        if self._id is not None:
            digest = digest_of(self._appends) if self._digest is None else self._digest
        return Request(self._appends, self._id, digest)
