"""What handlers are given beside the command: objects of the application, found by their types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_origin

from ..log.handlers import InvalidHandler


class Services:
    """Objects that handlers ask for by type: an exact one first, else the only one that is of the type.

    Of several of one type, the one whose attribute ``name`` is the parameter's name is meant.
    """

    def __init__(self, services: Iterable[object] = ()) -> None:
        self._services: list[object] = []
        self._as: dict[Any, object] = {}
        for service in services:
            self.add(service)

    def add(self, service: object, as_: Any = None) -> None:
        """Have one more.

        Args:
            as_: What it is asked for as, when that is not its class or a base of it: a Protocol, for example.
        """
        if as_ is not None:
            self._as[as_] = service
        else:
            self._services.append(service)

    def find(self, handler: str, annotation: Any, name: str) -> object | None:
        """The service that a parameter asks for; None when there is none.

        Raises:
            InvalidHandler: Several are of the type, and none has the parameter's name.
        """
        try:
            if annotation in self._as:
                return self._as[annotation]
        except TypeError:
            return None
        cls = get_origin(annotation) or annotation
        if not isinstance(cls, type) or cls is object:
            return None
        found = [service for service in self._services if type(service) is cls]
        if not found:
            try:
                found = [service for service in self._services if isinstance(service, cls)]
            except TypeError:  # a Protocol that is none at run time
                return None
        if len(found) > 1:
            named = [service for service in found if getattr(service, "name", None) == name]
            if len(named) != 1:
                raise InvalidHandler(
                    handler,
                    f"the app has {len(found)} services of type {cls.__name__}, and none of them is named {name!r}",
                    hint="Name the parameter as the service's attribute `name` says, or give it a class of its own",
                )
            found = named
        return found[0] if found else None
