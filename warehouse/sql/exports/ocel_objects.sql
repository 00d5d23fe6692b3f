-- The objects of the events as OCEL 2.0 has them, a JSON object a row: sagas, runs, steps of runs, services.
-- What an object was from its beginning has the time 0 there.
WITH sagas AS (
    SELECT saga_name, saga_id, min(parent_saga_id) AS parent_saga_id FROM events GROUP BY ALL
), parents AS (
    SELECT saga_id AS parent_saga_id, min(saga_name) AS parent_name FROM sagas GROUP BY ALL
), run_ids AS (
    SELECT run_id, min(saga_name) AS saga_name, min(saga_id) AS saga_id FROM events GROUP BY ALL
), steps AS (
    SELECT run_id, step_name, bool_or(compensable) AS compensable, bool_or("pivot") AS "pivot"
    FROM events WHERE step_name IS NOT NULL GROUP BY ALL
), objects AS (
    SELECT ${saga} AS id, ${saga_type} AS type,
        NULL::STRUCT("name" VARCHAR, "value" VARCHAR)[] AS attributes,
        CASE WHEN parent_name IS NOT NULL THEN [{
            'objectId': ${parent}, 'qualifier': 'started by'
        }] END AS relationships
    FROM sagas LEFT JOIN parents USING (parent_saga_id)
    UNION ALL
    SELECT ${run}, 'run', [
        {'name': 'outcome', 'value': outcome},
        {'name': 'failing_step', 'value': failing_step},
        {'name': 'total_ms', 'value': total_ms::VARCHAR},
        {'name': 'wasted_ms', 'value': wasted_ms::VARCHAR}
    ], [{'objectId': ${saga}, 'qualifier': 'of saga'}]
    FROM run_ids LEFT JOIN (SELECT run_id, outcome, failing_step, total_ms, wasted_ms FROM runs) USING (run_id)
    UNION ALL
    SELECT ${step}, 'step', [
        {'name': 'step_name', 'value': step_name},
        {'name': 'compensable', 'value': compensable::VARCHAR},
        {'name': 'pivot', 'value': "pivot"::VARCHAR}
    ], [{'objectId': ${run}, 'qualifier': 'in run'}]
    FROM steps
    UNION ALL
    SELECT DISTINCT ${service}, 'service', NULL, NULL FROM events WHERE service IS NOT NULL
)
SELECT to_json({
    'id': id,
    'type': type,
    'attributes': list_transform(
        list_filter(coalesce(attributes, []), lambda one: one.value IS NOT NULL),
        lambda one: {'name': one.name, 'time': '1970-01-01T00:00:00Z', 'value': one.value}
    ),
    'relationships': coalesce(relationships, [])
})
FROM objects
