-- The rows of open_runs that a report is asked about.
SELECT *
FROM open_runs
WHERE saga_name GLOB saga
    AND (cardinality(attribute::MAP(VARCHAR, VARCHAR)) = 0 OR list_has_all(map_entries(attributes), map_entries(attribute)))
    AND (span IS NULL OR last_event_at >= as_of() - span)
