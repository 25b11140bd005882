"""PostgreSQL as a source of changes: its logical replication, without anything installed in the server."""

from .source import PostgresSource

__all__ = ["PostgresSource"]
