"""MySQL and MariaDB as sources of changes: their binary log, read as a replica reads it."""

from .source import MySQLSource

__all__ = ["MySQLSource"]
