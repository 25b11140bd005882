"""What a database role must be granted to use a log."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from .place import Place, quote_name

_READ = ("head", "version_at", "version_from", "position_at", "find_append", "matched")
_APPEND = ("append_one", "append_many", "append", "lock", "put_body", "head", "shapes", "find_append", "find_origins")


class Ability(StrEnum):
    """What a role is to be able to do."""

    READ = "read"
    """Read and follow all events, and see how far the consumers are."""
    APPEND = "append"
    """Append, and read nothing: no event, no stream's name."""
    CONSUME = "consume"
    """Both, and keep checkpoints and state: what flows, captures and projections take."""


def grants(place: Place, role: str, ability: Ability, consumers: Mapping[str, str]) -> list[str]:
    """The SQL statements that let a role use the log in this way. The schema's owner runs them.

    The functions that append run with their owner's rights, so that no table need be granted for it.

    Args:
        role: The role's name as it is; it must be there.
        consumers: The tables that consumers keep: their columns by their names. Made here, so that a consumer's
            role need not be able to make tables in the log's schema.
    """
    schema, to = place.quoted, quote_name(role)
    reads = ability is not Ability.APPEND
    functions: list[str] = []
    if reads:
        functions += _READ
    if ability is not Ability.READ:
        functions += _APPEND
    if ability is Ability.CONSUME:
        functions.append("register_inline")
    named = ", ".join(f"{schema}.{quote_name(name)}" for name in dict.fromkeys(functions))
    statements = [f"grant usage on schema {schema} to {to}"]
    if ability is Ability.CONSUME:
        statements += [
            f"create table if not exists {schema}.{quote_name(name)} ({columns.format(blob='bytea')})"
            for name, columns in consumers.items()
        ]
    if reads:
        statements += [
            f"grant select on all tables in schema {schema} to {to}",
            f"alter default privileges in schema {schema} grant select on tables to {to}",
        ]
    else:
        statements.append(f"grant select on {schema}.meta to {to}")
    statements.append(f"grant execute on function {named} to {to}")
    if ability is Ability.CONSUME:
        tables = ", ".join(f"{schema}.{quote_name(name)}" for name in consumers)
        statements.append(f"grant insert, update, delete on {tables} to {to}")
    return statements
