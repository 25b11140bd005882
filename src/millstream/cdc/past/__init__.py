"""The past of captured tables: a table at a moment, the history of a row, what differs between two moments."""
