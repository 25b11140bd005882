"""Ready-made sinks: what can follow a captured table."""
