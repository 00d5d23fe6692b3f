"""How events are kept and asked for: tables, catalog, DuckDB history, parity."""
