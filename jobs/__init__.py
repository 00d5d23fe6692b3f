"""PyFlink only: one job a file, and the SQL it runs."""
