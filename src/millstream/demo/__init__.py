"""The demo: a month of real flights through one log, and what each of the four patterns makes of them.

It is also an application to read: `domain` has the events, the aggregate, the command, the read model and the
query, `flows` the two flows, `play` puts them together with a capture of a database that another process writes.
"""
