"""DuckDB files, as places that read models are kept in."""
