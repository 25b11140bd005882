"""The hash chain: each header's hash covers the one before it, so that no header can change unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

GENESIS = bytes(32)
"""What stands before the first header."""

JSON_FORMAT = 1
"""Body hashes of this format are SHA-256 over the JSON objects, joined by newlines."""
FRAME_FORMAT = 2
"""Body hashes of this format are `millstream.frames.frame_hash`."""

_encode = msgspec.json.Encoder().encode
_sha256 = hashlib.sha256


def header_hash(
    previous: bytes,
    body_hash: bytes,
    position: int,
    count: int,
    stream: str,
    version: int,
    type: str,
    schema: str,
    recorded: int,
    effective: int | None,
    tags: Sequence[str],
    metadata: str | None,
    format: int,
) -> bytes:
    """SHA-256 over the previous hash, the body's hash and the header as a JSON array (docs/format.md)."""
    header = (position, count, stream, version, type, schema, recorded, effective, tags, metadata, format)
    return _sha256(previous + body_hash + _encode(header)).digest()
