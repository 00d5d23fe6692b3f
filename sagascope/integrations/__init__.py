"""Bridges from saga executors to `sagascope.scope`."""
