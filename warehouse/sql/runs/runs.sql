-- Every run, ended or not, one row each: what became of it, whatever the order that its events come in.
-- Places are compared, not positions: (sequence, event_id), so that two events which claim one number have an order, too.
WITH single_events AS NOT MATERIALIZED (
    ${single_events}
), defined AS (
    SELECT definition_id, step.step_name AS step_name, bool_or(step.compensable) AS compensable,
        bool_or(step."pivot") AS "pivot"
    FROM (
        SELECT definition_id,
            unnest(from_json(steps, '[{"step_name": "VARCHAR", "compensable": "BOOLEAN", "pivot": "BOOLEAN"}]')) AS step
        FROM ${definitions}
    )
    GROUP BY ALL
), parts AS (
    -- Of each run: a row a step, and one without a step of what happened to the saga itself.
    SELECT run_id, CASE WHEN event_type NOT LIKE 'saga_%' THEN step_name END AS step_name,
        min(saga_id) AS saga_id, min(saga_name) AS saga_name, min(definition_id) AS definition_id,
        arg_min(attributes, place) FILTER (event_type LIKE 'saga_%' AND cardinality(attributes) > 0) AS attributes,
        min(place) AS first_place, max(place) AS last_place,
        arg_max(event_type, place) AS last_event_type,
        min("timestamp") AS first_event_at, max("timestamp") AS last_event_at,
        bool_or(compensable) AS compensable, bool_or("pivot") AS "pivot",
        max(place) FILTER (event_type = 'step_completed') AS done_place,
        max(place) FILTER (event_type = 'step_failed') AS failed_place,
        max(place) FILTER (event_type LIKE 'compensation_%') AS undoing_place,
        max(place) FILTER (event_type = 'compensation_completed') AS undone_place,
        bool_or(event_type = 'compensation_failed') AS has_undoing_failed,
        arg_max(row(error_type, error_message), place) FILTER (event_type = 'step_failed') AS failure,
        sum(duration_ms) FILTER (event_type = 'step_completed') AS work_ms,
        sum(duration_ms) FILTER (event_type IN ('compensation_completed', 'compensation_failed')) AS undoing_ms,
        min("timestamp") FILTER (event_type = 'saga_started') AS started_at,
        arg_max(row(event_type, "timestamp", total_duration_ms, error_type, error_message), place)
            FILTER (event_type IN ('saga_completed', 'saga_rolled_back', 'saga_failed')) AS "end"
    FROM (SELECT *, row("sequence", event_id) AS place FROM single_events)
    GROUP BY ALL
), steps AS (
    SELECT parts.* EXCLUDE (compensable, "pivot"),
        coalesce(parts.compensable, defined.compensable) AS is_compensable,
        coalesce(parts."pivot", defined."pivot", FALSE) AS is_pivot,
        parts.step_name IS NOT NULL AND done_place IS NOT NULL AS is_done,
        coalesce(undone_place > done_place, undone_place IS NOT NULL) AS is_undone,
        -- A step that was done again after it was undone stands again.
        NOT is_undone AND coalesce(undoing_place > done_place, undoing_place IS NOT NULL) AS is_undoing_open,
        is_done AND NOT is_undone AS stands,
        coalesce(failed_place > done_place, failed_place IS NOT NULL) AS is_failed,
        CASE
            WHEN is_undoing_open AND has_undoing_failed THEN 'compensation_failed'
            WHEN is_undoing_open THEN 'compensation_unfinished'
            WHEN is_pivot THEN 'pivot'
            WHEN NOT is_compensable THEN 'not_compensable'
            WHEN is_compensable THEN 'not_compensated'
            ELSE 'unknown'
        END AS reason
    FROM parts
    LEFT JOIN defined ON parts.definition_id = defined.definition_id AND parts.step_name = defined.step_name
), gathered AS (
    SELECT run_id, min(saga_id) AS saga_id, min(saga_name) AS saga_name, min(definition_id) AS definition_id,
        arg_min(attributes, first_place) FILTER (attributes IS NOT NULL) AS attributes,
        coalesce(min(started_at), min(first_event_at)) AS started_at,
        min(started_at) IS NOT NULL AS is_start_known,
        max(last_event_at) AS last_event_at,
        arg_max(row(last_event_type, step_name), last_place) AS "last",
        any_value("end") AS "end",
        list(row(done_place, step_name)) FILTER (is_done) AS done,
        list(row(undone_place, step_name)) FILTER (is_undone) AS undone,
        list(row(done_place, step_name, reason)) FILTER (stands) AS standing,
        arg_min(row(step_name, failure), failed_place) FILTER (is_failed) AS failing,
        coalesce(bool_or(is_undoing_open), FALSE) AS has_undoing_open,
        coalesce(bool_or(stands AND is_pivot), FALSE) AS has_pivot,
        coalesce(bool_or(stands AND reason = 'not_compensated'), FALSE) AS has_forgotten,
        coalesce(bool_or(stands AND reason = 'unknown'), FALSE) AS has_unknown,
        coalesce(bool_or(is_undone), FALSE) AS has_undone,
        coalesce(bool_or(undoing_place IS NOT NULL), FALSE) AS has_undoing,
        sum(work_ms) FILTER (is_undone) AS undone_ms,
        sum(undoing_ms) AS undoing_ms
    FROM steps
    GROUP BY run_id
)
SELECT run_id, saga_id, saga_name,
    CASE
        WHEN "end" IS NULL THEN NULL
        WHEN "end"[1] = 'saga_completed' THEN 'completed'
        WHEN has_undoing_open THEN 'compensation_failed'
        WHEN has_pivot THEN 'partially_committed'
        WHEN has_forgotten OR (has_unknown AND "end"[1] = 'saga_failed') THEN 'rolled_back_partial'
        WHEN has_undone THEN 'rolled_back'
        ELSE 'failed_nothing_to_undo'
    END AS outcome,
    started_at,
    "end"[2] AS ended_at,
    CASE
        WHEN "end"[3] IS NOT NULL THEN "end"[3]
        WHEN is_start_known AND "end" IS NOT NULL THEN greatest(date_diff('millisecond', started_at, "end"[2]), 0)
    END AS total_ms,
    "end"[3] IS NULL AND is_start_known AND "end" IS NOT NULL AS total_derived,
    CASE WHEN outcome IS DISTINCT FROM 'completed' THEN failing[1] END AS failing_step,
    CASE WHEN outcome IS DISTINCT FROM 'completed' THEN coalesce(failing[2][1], "end"[4]) END AS error_type,
    CASE
        WHEN outcome IS NOT DISTINCT FROM 'completed' THEN NULL
        WHEN failing[2][1] IS NOT NULL THEN failing[2][2]
        ELSE "end"[5]
    END AS error_message,
    coalesce(list_transform(list_sort(done), lambda step: step[2]), []) AS steps_done,
    coalesce(list_transform(list_sort(undone), lambda step: step[2]), []) AS steps_undone,
    CASE
        WHEN outcome IS NULL THEN NULL
        WHEN outcome = 'completed' THEN []
        ELSE coalesce(list_transform(list_sort(standing), lambda step: {
            'step_name': step[2],
            'reason': CASE WHEN step[3] = 'not_compensated' AND has_pivot THEN 'pivot_completed' ELSE step[3] END
        }), [])
    END AS residual_effects,
    CASE
        WHEN NOT has_undone AND NOT has_undoing THEN 0
        WHEN undone_ms IS NULL AND undoing_ms IS NULL THEN NULL
        ELSE coalesce(undone_ms, 0) + coalesce(undoing_ms, 0)
    END::BIGINT AS wasted_ms,
    attributes,
    definition_id,
    last_event_at,
    "last"[1] AS last_event_type,
    "last"[2] AS last_step
FROM gathered
