-- The records that are events.
CREATE TEMPORARY VIEW valid_events AS
SELECT *
FROM saga_events
WHERE reason IS NULL
