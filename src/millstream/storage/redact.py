"""Messages without passwords."""

from __future__ import annotations

import re

# Up to the last @: one that stands in a password should have been written as %40, and is not always.
_SECRET = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s,&]+)|(//[^:/@\s]*:)\S*(?=@)", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without what could be a password.

    Example:
        >>> redact("postgresql://ann:secret@db/shop is not reachable")
        'postgresql://ann:***@db/shop is not reachable'
    """
    return _SECRET.sub(lambda found: f"{found.group(1) or found.group(3)}***", text)
