"""Statistics, tables and figures over finished runs."""
