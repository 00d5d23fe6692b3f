"""The live dashboard: its HTTP API and its pages."""
