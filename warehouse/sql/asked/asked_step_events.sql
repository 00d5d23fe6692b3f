-- The events of these types that a report is asked about, each id once.
WITH given AS NOT MATERIALIZED (
    SELECT event_id, event_type, saga_id, saga_name, run_id, "timestamp", step_name, attempt, duration_ms, error_type,
        source_partition, source_offset
    FROM events
    WHERE list_contains(types, event_type)
        AND saga_name GLOB saga
        AND (cardinality(attribute::MAP(VARCHAR, VARCHAR)) = 0 OR list_has_all(map_entries(attributes), map_entries(attribute)))
        AND (span IS NULL OR "timestamp" >= as_of() - span)
), doubled AS MATERIALIZED (
    -- Few or none: to number all rows by their id would cost several times the rest of the query.
    SELECT hash(event_id) AS id_hash FROM given GROUP BY id_hash HAVING count(*) > 1
)
SELECT * FROM given WHERE hash(event_id) NOT IN (FROM doubled)
UNION ALL (
    SELECT * FROM given SEMI JOIN doubled ON hash(event_id) = id_hash
    QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY source_partition, source_offset) = 1
)
