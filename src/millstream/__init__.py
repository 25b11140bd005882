"""Millstream: event sourcing, change data capture, CQRS and stream processing on one append-only log."""
