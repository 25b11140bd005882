"""Commands: what is asked of the write side, as immutable structs that name the streams that they are about."""

from __future__ import annotations

import re
import sys
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    TypeVar,
    dataclass_transform,
    get_args,
)

import msgspec

from ..log.handlers import resolve

Target = TypeVar("Target")


class RefTo(msgspec.Struct, frozen=True):
    """The mark of a field that names a stream: whose aggregate it is of (a class, or its name)."""

    target: Any


if TYPE_CHECKING:

    class Reference(str, Generic[Target]):
        """A stream's name that says which aggregate is meant."""

    Ref = str | Reference[Target]
else:

    class Ref:
        """The type of a command's field that names an aggregate's stream: ``order: ms.Ref[Order]``.

        At run time it is a plain string; the class says which aggregate a command handler is given.
        """

        def __class_getitem__(cls, target: Any) -> Any:
            return Annotated[str, RefTo(target)]


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes each command or query class an immutable msgspec struct, and notes its references."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        refs: dict[str, Any] = {}
        for base in reversed(bases):
            refs |= getattr(base, "__refs__", {})
        refs |= _references(namespace.get("__annotations__", {}), sys._getframe(1))
        namespace["__refs__"] = refs
        config.setdefault("frozen", True)
        return super().__new__(mcls, name, bases, namespace, **config)


def _references(annotations: dict[str, Any], frame: FrameType) -> dict[str, Any]:
    found = {}
    for field, annotation in annotations.items():
        # Strings are resolved here, where the names around the class are at hand.
        resolved = resolve(annotation, frame.f_globals, frame.f_locals)
        if isinstance(resolved, str):
            match = re.search(r"\bRef\[\s*['\"]?([\w.]+)", resolved)
            if match is not None:
                found[field] = match[1].rpartition(".")[2]
                annotations[field] = Annotated[str, RefTo(found[field])]
            continue
        # Later, when values are checked, names that are local to a function are out of reach.
        annotations[field] = resolved
        for mark in get_args(resolved):
            if isinstance(mark, RefTo):
                found[field] = mark.target
    return found


# Once more on the class: type checkers would ask its base, msgspec's own, before the metaclass.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Command(msgspec.Struct, metaclass=MessageMeta):
    """Base class of commands: immutable, typed requests to change something.

    When one is executed its values are checked first: types, ranges given by ``Annotated[int, msgspec.Meta(ge=1)]``,
    and then `check`. What does not fit is `Rejected`, field by field. Values that stand for a declared one become it:
    the text ``"9.50"`` a Decimal.

    Example:
        >>> import millstream as ms
        >>> class Order(ms.Aggregate):
        ...     pass
        >>> class CancelOrder(ms.Command):
        ...     order: ms.Ref[Order]
        ...     reason: str = ""
        ...
        ...     def check(self) -> None:
        ...         if self.reason == "none":
        ...             raise ms.Rejected("say why", field="reason")
        >>> CancelOrder(order="order-1")
        CancelOrder(order='order-1', reason='')
    """

    __refs__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Refuse values that do not go together, by raising `Rejected`; by default there are none."""
