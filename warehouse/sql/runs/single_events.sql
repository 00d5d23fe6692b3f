-- The events, each id once: of a record that came again, the first one that is stored.
WITH doubled AS MATERIALIZED (
    -- Few or none: to number all rows by their id would cost several times the rest of the query.
    SELECT hash(event_id) AS id_hash FROM ${events} GROUP BY id_hash HAVING count(*) > 1
)
SELECT * FROM ${events} WHERE hash(event_id) NOT IN (FROM doubled)
UNION ALL (
    SELECT * FROM ${events} SEMI JOIN doubled ON hash(event_id) = id_hash
    QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY source_partition, source_offset, "sequence") = 1
)
