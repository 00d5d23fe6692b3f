-- Every execution of a step and of its compensation, one row each: a step that is tried again has a row an attempt.
WITH single_events AS NOT MATERIALIZED (
    ${single_events}
), executions AS (
    SELECT run_id, step_name, CASE WHEN event_type LIKE 'step_%' THEN 'step' ELSE 'compensation' END AS phase, attempt,
        min(saga_id) AS saga_id, min(saga_name) AS saga_name, min(place) AS first_place,
        min("timestamp") FILTER (event_type IN ('step_started', 'compensation_started')) AS started_at,
        arg_max(row(event_type, "timestamp", duration_ms, duration_derived, error_type, error_message), place)
            FILTER (event_type NOT IN ('step_started', 'compensation_started')) AS "end",
        arg_min(attributes, place) FILTER (cardinality(attributes) > 0) AS attributes
    FROM (SELECT *, row("sequence", event_id) AS place FROM single_events)
    WHERE event_type NOT LIKE 'saga_%'
    GROUP BY ALL
)
SELECT run_id, saga_id, saga_name, step_name, phase, attempt,
    CASE WHEN "end" IS NULL THEN 'started' WHEN "end"[1] LIKE '%_completed' THEN 'completed' ELSE 'failed' END AS status,
    started_at,
    "end"[2] AS ended_at,
    CASE
        WHEN "end"[3] IS NOT NULL THEN "end"[3]
        WHEN started_at IS NOT NULL AND "end" IS NOT NULL
            THEN greatest(date_diff('millisecond', started_at, "end"[2]), 0)
    END AS duration_ms,
    coalesce("end"[4] OR ("end" IS NOT NULL AND "end"[3] IS NULL AND started_at IS NOT NULL), FALSE) AS duration_derived,
    "end"[5] AS error_type,
    "end"[6] AS error_message,
    attributes,
    first_place[1] AS "sequence"
FROM executions
