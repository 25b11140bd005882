"""Pattern 3, CQRS: commands that change what is written, projections that read it into models, queries."""
