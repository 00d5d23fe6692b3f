-- Runs with an event in the partition that have not one start and at most one end. An event id counts once: that it is
-- stored twice is told of the key. By the runs' hashes first, without the ids: few are doubtful, of many.
-- Of a run from a source that never tells of starts none is missed.
WITH runs_of_partition AS MATERIALIZED (
    SELECT hash(run_id) AS run_hash, count(*) FILTER (event_type = 'saga_started') AS starts,
        count(*) FILTER (event_type IN (${ends})) AS ends, bool_or(source_topic IN (${startless})) AS is_startless
    FROM partition_rows
    GROUP BY run_hash
), earlier_turns AS NOT MATERIALIZED (
    SELECT run_id, saga_id, saga_name, event_id, event_type, source_topic
    FROM earlier_rows
    WHERE event_type IN ('saga_started', ${ends})
), runs_before AS (
    SELECT hash(run_id) AS run_hash, count(*) FILTER (event_type = 'saga_started') AS starts,
        count(*) FILTER (event_type <> 'saga_started') AS ends
    FROM earlier_turns SEMI JOIN runs_of_partition ON hash(run_id) = run_hash
    GROUP BY run_hash
), doubtful AS MATERIALIZED (
    SELECT run_hash
    FROM runs_of_partition AS now LEFT JOIN runs_before AS before USING (run_hash)
    WHERE now.starts + coalesce(before.starts, 0) > 1
        OR (now.starts + coalesce(before.starts, 0) = 0 AND is_startless IS NOT TRUE)
        OR now.ends + coalesce(before.ends, 0) > 1
), turns AS (
    SELECT run_id, saga_id, saga_name, event_id, event_type, source_topic
    FROM partition_rows SEMI JOIN doubtful ON hash(run_id) = run_hash
    UNION ALL
    SELECT * FROM earlier_turns SEMI JOIN doubtful ON hash(run_id) = run_hash
)
SELECT run_id, any_value(saga_name) AS saga_name, any_value(saga_id) AS saga_id,
    count(DISTINCT event_id) FILTER (event_type = 'saga_started') AS starts,
    count(DISTINCT event_id) FILTER (event_type IN (${ends})) AS ends,
    coalesce(bool_or(source_topic IN (${startless})), FALSE) AS is_startless
FROM turns
GROUP BY run_id
