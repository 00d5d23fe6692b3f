-- The runs that ended, one row each.
SELECT * EXCLUDE (last_event_at, last_event_type, last_step)
FROM ${runs}
WHERE outcome IS NOT NULL AND ${span}
