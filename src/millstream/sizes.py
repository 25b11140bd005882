"""Sizes of bytes as people write them: ``"10GB"``, ``"512 MiB"``."""

from __future__ import annotations

import re

_UNITS = {unit: 1000**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
_UNITS |= {unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)}
_WRITTEN = {unit.upper(): unit for unit in _UNITS}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?B|B)", re.IGNORECASE | re.ASCII)


def parsed_size(text: str) -> tuple[int, str] | None:
    """How many bytes a text says, and the text as it is usually written; None when it is no size.

    Example:
        >>> parsed_size("1.5 gb")
        (1500000000, '1.5GB')
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    unit = _WRITTEN[found[2].upper()]
    return round(float(found[1]) * _UNITS[unit]), f"{found[1]}{unit}"
