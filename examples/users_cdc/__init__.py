"""The users table of an ordinary PostgreSQL database, and four things that follow it."""
