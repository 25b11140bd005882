"""Pattern 1, event sourcing: aggregates whose state is what their events add up to."""
