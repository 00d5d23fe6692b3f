"""The live dashboard: one reader of the tables, its numbers over HTTP for any number of viewers."""
