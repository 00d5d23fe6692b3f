"""Orchestration only: the tables as Dagster's assets, and what Iceberg's metadata says of each of their days."""
