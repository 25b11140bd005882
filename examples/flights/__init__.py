"""Flights from New York as streams: counts, rolling delays, a pattern, and what did not happen."""
