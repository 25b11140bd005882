"""Documents: read models of one document for each key, folded from the events of any streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar, get_args, get_origin

import msgspec
import polars as pl

from ..conversion import ready
from ..errors import DatabaseError, InvalidEvent, UsageError
from ..events import Plain
from ..log.handlers import Handler, InvalidHandler, handler_table
from ..log.records import Recorded, Run
from ..log.singles import Singles, events_in
from ..marks import mark
from ..personal import plain_text
from ..storage.database import Database, Params
from ..storage.frames import quoted, quoted_column, upsert_sql
from .applying import Bound
from .binding import named
from .columns import given, kind_of, value_of
from .pieces import Batch
from .projection import Placement, Projection
from .shares import STREAM, Keys, by_type

Document = TypeVar("Document")

_FOLD = "fold"
_FEW = 20
"""Fewer documents than these are written one by one: a frame for them would take longer."""
_ASKED = 400
"""How many documents one statement asks for."""
_EMPTY = pl.DataFrame()


class _Gone:
    def __repr__(self) -> str:
        return "gone"


class Documents(Projection, Generic[Document]):
    """Base class of projections that keep one document for each key, whichever streams its events are of.

    ``ms.Documents[Customer]`` keeps objects of a class of fields, a dataclass or ``msgspec.Struct``, each field with a
    default. Handlers, marked ``@ms.on``, take the event and the document of its key, a new one where there was none,
    and change it, or return another one, or ``self.gone`` to have it removed. They are folds: they may ask for
    ``recorded`` and ``key: str`` (and for ``db`` with ``reads``), have no other effects: so a replay gives the same.
    The documents that a stretch of events is about are read by one statement and written by another.

    They stand in one table, as columns ``key`` and ``document`` (JSON), and the fields that ``columns`` names beside.

    Attributes:
        key: The field of the events that holds the key, or ``"_stream"`` for the name of the stream; or such a name for
            each class of events. Where it is more than that, override `keys_of`.
        columns: Fields of the document that are columns too, to be searched and sorted by.
        table: The table's name; by default the class's, ``CustomerViews`` as ``customer_views``.
        schema: More SQL to be run behind that of the table: indexes.

    Example:
        >>> import millstream as ms
        >>> import msgspec
        >>> class Ordered(ms.Event, type="DocOrdered"):
        ...     customer: str
        ...     cents: int
        >>> class Customer(msgspec.Struct):
        ...     orders: int = 0
        ...     cents: int = 0
        >>> class Customers(ms.Documents[Customer]):
        ...     key = "customer"
        ...     columns = ["cents"]
        ...
        ...     @ms.on
        ...     def ordered(self, event: Ordered, customer: Customer) -> None:
        ...         customer.orders += 1
        ...         customer.cents += event.cents
        >>> class GetCustomer(ms.Query[Customer | None]):
        ...     name: str
        >>> app = ms.App(ms.open(), projections=[Customers.live()])
        >>> @app.query
        ... def get_customer(query: GetCustomer, db: ms.Database) -> Customer | None:
        ...     return Customers.get(db, query.name)
        >>> _ = app.log.append("order-1", [Ordered(customer="Ann", cents=5), Ordered(customer="Ann", cents=7)])
        >>> app.query(GetCustomer("Ann"))
        Customer(orders=2, cents=12)
    """

    key: ClassVar[str | Mapping[Any, str]] = ""
    columns: ClassVar[Sequence[str]] = ()
    table: ClassVar[str] = ""
    gone: Final = _Gone()
    _is_base = True
    _form: ClassVar[_Form]
    _more: ClassVar[str] = ""
    """The SQL that the class's author gave."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        document = _document_of(cls)
        if document is None:
            raise InvalidHandler(
                cls.__qualname__, "it does not say what its documents are", hint="Write ms.Documents[Customer]"
            )
        if isinstance(document, TypeVar):
            return
        if "table" not in vars(cls):
            cls.table = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        cls._form = _Form(cls, document)
        cls._more = vars(cls).get("schema", cls._more)
        cls.schema = f"{cls._form.creates}; {cls._more}"

    def keys_of(self, event: Any, recorded: Recorded) -> str | Iterable[str] | None:
        """The key, or the keys, of the documents that an event is about; None: it is about none."""
        return self._form.key_of(event, recorded)

    @classmethod
    def get(cls, db: Database, key: str) -> Document | None:
        """The document of a key, from within a query; None when there is none."""
        row = db.execute(f"select document from {quoted(cls.table)} where key = ?", (key,)).fetchone()
        return None if row is None else cls._form.decode(row[0])

    @classmethod
    def find(cls, db: Database, where: str = "true", params: Params = ()) -> dict[str, Document]:
        """Documents by their keys, from within a query.

        Args:
            where: A condition on the columns, and what may follow it: ``"cents > ? order by cents desc limit 10"``.
            params: What its question marks stand for; values of the fields' types are compared as the columns are.
        """
        values = (
            {name: given(value, db.dialect) for name, value in params.items()}
            if isinstance(params, Mapping)
            else [given(value, db.dialect) for value in params]
        )
        rows = db.execute(f"select key, document from {quoted(cls.table)} where {where}", values)
        return {key: cls._form.decode(text) for key, text in rows}

    @classmethod
    def _alone(cls, **where: Any) -> Placement:
        return _Keyed(cls, **where)

    @classmethod
    def _spans(cls) -> str | None:
        keys = [cls.key] if isinstance(cls.key, str) else list(cls.key.values())
        by_stream = cls.keys_of is Documents.keys_of and set(keys) == {STREAM}
        return super()._spans() or (None if by_stream else "its documents are of events of several streams")

    @classmethod
    def _made_of(cls) -> list[str]:
        form = cls._form
        return [repr(msgspec.json.schema(form.document)), repr(sorted(form.fields.items())), _defaults(form.document)]


class _Form:
    """What the documents of a class are like, and how they are kept."""

    def __init__(self, projection: type[Documents[Any]], document: type[Any]) -> None:
        name = projection.__qualname__
        try:
            document()
            self._decode = msgspec.json.Decoder(ready(document)).decode
            known = {field.name: field.type for field in _fields(document)}
        except Exception as error:
            raise InvalidHandler(
                name,
                f"{document!r:.60} cannot be a document: {error}",
                hint="Give a msgspec.Struct or a dataclass, with a default for each field",
            ) from error
        if isinstance(projection.columns, str):
            raise UsageError(f"{name}.columns is a text", hint=f"Write columns = [{projection.columns!r}]")
        for column in projection.columns:
            if column not in known or column in ("key", "document"):
                raise UsageError(
                    f"{name}.columns names {column!r}, which is no field of {document.__name__} to be a column",
                    hint=f"Its fields: {', '.join(known)}",
                )
        self.document = document
        self.names = list(projection.columns)
        kinds = [kind_of(known[column]) for column in self.names]
        self.fields = {column: kind[0] for column, kind in zip(self.names, kinds, strict=True)}
        self.frame = {"key": pl.String(), **dict(zip(self.names, (kind[1] for kind in kinds), strict=True))}
        self.frame["document"] = pl.String()
        declared = "".join(f", {quoted_column(column)} {kind}" for column, kind in self.fields.items())
        self.creates = (
            f"create table {quoted(projection.table)} (key text primary key{declared}, document text not null)"
        )
        self.encode = msgspec.json.Encoder(enc_hook=plain_text).encode
        keys = projection.key
        self._key = keys if isinstance(keys, str) else ""
        self._keys: dict[str, str] = {}
        if not isinstance(keys, str | Mapping):
            raise InvalidHandler(name, f"key is {keys!r:.40}", hint='Name a field: key = "customer"')
        if not (keys or projection.keys_of is not Documents.keys_of):
            raise InvalidHandler(name, "it has no key", hint='Write key = "customer", a field of its events')

    def check_keys(self, projection: type[Documents[Any]], events: Mapping[str, type[Any]]) -> None:
        """See that the events that are handled have keys, as far as their classes tell.

        Raises:
            InvalidHandler: They do not.
        """
        name, keys = projection.__qualname__, projection.key
        self._keys = {} if isinstance(keys, str) else by_type(name, "key", keys, events)
        if projection.keys_of is not Documents.keys_of:
            return  # it may see to those that have none
        for type, cls in events.items():
            field = self._key or self._keys.get(type, "")
            if field != STREAM and (not field or (cls is not Plain and field not in cls.__struct_fields__)):
                raise InvalidHandler(
                    name,
                    f"events of type {type} have no field {field!r} to be the key",
                    hint='Name one for each class of events: key = {OrderPlaced: "customer"}',
                )

    def key_of(self, event: Any, recorded: Recorded) -> str | None:
        field = self._key or self._keys.get(recorded.type, "")
        if field == STREAM:
            return recorded.stream
        found = event.data.get(field) if isinstance(event, Plain) else getattr(event, field, None)
        if found is None and not (field and (isinstance(event, Plain) or hasattr(event, field))):
            raise UsageError(
                f"{recorded.type} has no field {field!r} to be the key", hint="Name one for each type: key = {…}"
            )
        return None if found is None else str(found)

    def decode(self, text: str) -> Any:
        try:
            return self._decode(text)
        except msgspec.DecodeError as error:
            raise DatabaseError(
                f"a stored document is none of {self.document.__name__}: {error}",
                hint="Have the read model made anew: app.rebuild, or millstream projection rebuild",
            ) from error

    def framed(self, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
        """Rows as a frame."""
        decimals = [name for name, dtype in self.frame.items() if isinstance(dtype, pl.Decimal)]
        if not decimals:
            return pl.DataFrame(rows, schema=self.frame, orient="row")
        texts = {name: pl.String() if name in decimals else dtype for name, dtype in self.frame.items()}
        frame = pl.DataFrame(rows, schema=texts, orient="row")
        return frame.with_columns(pl.col(name).cast(self.frame[name]) for name in decimals)

    def row(self, key: str, document: Any) -> tuple[tuple[Any, ...], Any]:
        """What is written for a document, and the document as it will be read.

        Raises:
            UsageError: It does not fit its class.
        """
        name = self.document.__name__
        if not isinstance(document, get_origin(self.document) or self.document):
            raise UsageError(
                f"{document!r:.60} is no {name} to be the document of {key!r:.60}",
                hint="Return the document, another of its class, or self.gone; or nothing, where it was changed",
            )
        try:
            text = self.encode(document).decode()
            again = self._decode(text)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise UsageError(
                f"the document of {key!r:.60} does not fit {name}: {error}",
                hint="Give each field values of its type",
            ) from error
        try:
            columns = [value_of(getattr(document, each), kind) for each, kind in self.fields.items()]
        except UsageError as error:
            error.add_note(f"in a column of the document of {key!r:.60}")
            raise
        return (key, *columns, text), again


class _Keyed(Placement):
    """Documents, and where and when they are kept."""

    projection: type[Documents[Any]]
    folds = True

    def _bind(self) -> dict[str, Bound]:
        self._instance = self.projection()
        table = handler_table(self.projection)
        if not table:
            raise InvalidHandler(
                self.projection.__qualname__, "it handles no event", hint="Mark its handlers with @ms.on"
            )
        self.projection._form.check_keys(self.projection, {type: each.event for type, each in table.items()})
        self._folds = {type: _fold(self.projection, self._instance, each) for type, each in table.items()}
        return {type: Bound(_not_alone, handler.event, False, _FOLD) for type, handler in table.items()}

    def keys(self) -> Keys | None:
        """What its events are divided by: the keys of the documents, of which an event may have several."""
        cls = self.projection
        if cls.partition_by != STREAM:
            raise UsageError(
                f"{cls.__qualname__}.partition_by: documents are divided by their keys", hint="Leave it out"
            )
        if cls.keys_of is not Documents.keys_of:
            return None
        keys = Keys(cls.__qualname__, cls.key, self._classes)
        return keys if keys.by_stream else None

    def batch(self, runs: Sequence[Run] | Singles) -> Batch:
        """Runs whose events are folded together."""
        return _Folded(self, runs, events_in(runs), _EMPTY)

    def fold(self, runs: Sequence[Run] | Singles, db: Database) -> None:
        """Fold the events of runs into their documents."""
        try:
            found = self._found(runs)
        except Exception:
            if self.share is not None and self.share.number > 1 and events_in(runs) == 1:
                return  # what has no key is in no partition: the first has it fail
            raise
        wanted = dict.fromkeys(key for _, _, keys in found for key in keys)
        form = self.projection._form
        documents = self._read(db, list(wanted))
        there = set(documents)
        rows: dict[str, tuple[Any, ...] | None] = {}
        for event, recorded, keys in found:
            fold = self._folds[recorded.run.type]
            for key in keys:
                document = documents.get(key)
                if document is None:
                    document = form.document()
                changed = fold(event, document, recorded, key, db)
                if changed is Documents.gone:
                    documents[key] = rows[key] = None
                else:
                    # As it will be read, after each event: what comes out must not depend on how many come at once.
                    rows[key], documents[key] = form.row(key, document if changed is None else changed)
        self._write(db, rows, there)

    def _found(self, runs: Sequence[Run] | Singles) -> list[tuple[Any, Recorded, list[str]]]:
        """The events of runs, each with the keys of its documents."""
        keys_of, share = self._instance.keys_of, self.share
        found = []
        for run in runs:
            cls = self._classes.get(run.type)
            if cls is None:
                raise InvalidEvent(f"an event of type {run.type!r} cannot be read")
            events = [Plain(run.type, data) for data in run.data()] if cls is Plain else run.events(cls)
            for index, event in enumerate(events):
                recorded = Recorded(run, index, event)
                keys = _keys(recorded, keys_of(event, recorded))
                found.append((event, recorded, keys if share is None else [key for key in keys if share.has(key)]))
        return found

    def _read(self, db: Database, keys: list[str]) -> dict[str, Any]:
        form, table = self.projection._form, quoted(self.projection.table)
        documents: dict[str, Any] = {}
        for start in range(0, len(keys), _ASKED):
            some = keys[start : start + _ASKED]
            marks = ", ".join("?" * len(some))
            for key, text in db.execute(f"select key, document from {table} where key in ({marks})", some):
                documents[key] = form.decode(text)
        return documents

    def _write(self, db: Database, changed: dict[str, tuple[Any, ...] | None], there: set[str]) -> None:
        form, table = self.projection._form, self.projection.table
        removed = [(key,) for key, row in changed.items() if row is None and key in there]
        if removed:
            db.executemany(f"delete from {quoted(table)} where key = ?", removed)
        rows = [row for row in changed.values() if row is not None]
        if db.dialect == "sqlite" or len(rows) < _FEW:
            db.executemany(upsert_sql(table, list(form.frame), ["key"], (), "?"), rows)
        else:
            db.upsert(table, form.framed(rows), key="key")


class _Folded(Batch):
    """Neighbouring events that are folded together."""

    def to(self, db: Database) -> None:
        """Apply it."""
        assert isinstance(self.placement, _Keyed)
        self.placement.fold(self.runs, db)


def _not_alone(event: Any, db: Database, recorded: Recorded | None) -> object:
    raise AssertionError("documents are folded by stretches of events")


def _keys(recorded: Recorded, named: Any) -> list[str]:
    """What `Documents.keys_of` has given, each key once."""
    if named is None:
        return []
    keys = [named] if isinstance(named, str) or not isinstance(named, Iterable) else list(named)
    for key in keys:
        if not isinstance(key, str):
            raise UsageError(
                f"{key!r:.60} is no text to be the key of a document, for an event of type {recorded.type}",
                hint="Return texts from keys_of, such as str(number); or None, for no document",
            )
    return list(dict.fromkeys(keys))


Fold = Callable[[Any, Any, Recorded, str, Database], Any]


def _fold(projection: type[Documents[Any]], instance: Documents[Any], handler: Handler) -> Fold:
    """A handler, called with what it asks for."""
    where = f"{projection.__qualname__}.{handler.method}"
    document = projection._form.document
    taken = ""
    asked: dict[str, int] = {}
    for parameter in handler.parameters:
        if named(parameter.annotation, "Recorded") or parameter.name == "recorded":
            asked[parameter.name] = 2
        elif parameter.name == "key" and parameter.annotation in (str, "str", None):
            asked[parameter.name] = 3
        elif projection.reads and (named(parameter.annotation, "Database") or parameter.name == "db"):
            asked[parameter.name] = 4
        elif not taken and (parameter.annotation is document or parameter.annotation in (None, document.__name__)):
            taken = parameter.name
            asked[parameter.name] = 1
        elif parameter.required:
            raise InvalidHandler(
                where,
                f"it asks for {parameter.name!r}, which a fold is not given",
                hint=f"Ask for the event, the document ({document.__name__}), recorded: ms.Recorded and key: str; and"
                " for db: ms.Database, if it declares what it reads",
            )
    if not taken:
        raise InvalidHandler(
            where, "it does not take the document", hint=f"Write def {handler.method}(self, event, document)"
        )
    method = getattr(instance, handler.method)
    others = [name for name in asked if name != taken]
    if not others:
        return lambda event, document, *_: method(event, **{taken: document})
    return lambda *given: method(given[0], **{name: given[at] for name, at in asked.items()})


def _document_of(cls: type[Any]) -> Any:
    for base in cls.__mro__:
        for each in vars(base).get("__orig_bases__", ()):
            origin = get_origin(each)
            if isinstance(origin, type) and issubclass(origin, Documents):
                return get_args(each)[0]
    return None


def _fields(document: type[Any]) -> Sequence[msgspec.inspect.Field]:
    found: Any = msgspec.inspect.type_info(document)
    return found.fields  # type: ignore[no-any-return]


_MADE = (list, dict, set, frozenset, tuple, bytearray, str, int, float, bool, bytes)


def _defaults(document: type[Any]) -> str:
    """What a new document has; of a value that is computed, such as an id or the time, what computes it."""
    fields = _fields(document)
    if not any(_computes(field) for field in fields):
        return repr(document())
    return repr(
        [
            (field.name, mark(field.default_factory) if _computes(field) else repr(getattr(document(), field.name)))
            for field in fields
        ]
    )


def _computes(field: msgspec.inspect.Field) -> bool:
    made = field.default_factory
    if made is msgspec.NODEFAULT or made in _MADE:
        return False
    if isinstance(made, type) and (issubclass(made, msgspec.Struct) or is_dataclass(made)):
        return any(_computes(each) for each in _fields(made))
    return True
