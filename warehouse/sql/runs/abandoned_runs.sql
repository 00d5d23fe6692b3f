-- The open runs of which nothing was heard for so long that nobody works at them any more, most likely.
SELECT * FROM open_runs WHERE last_event_at < as_of() - age
