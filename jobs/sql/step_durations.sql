-- Durations by the minute, whatever the other statistics' window: counts of buckets merge by summing.
SELECT
    CAST(window_start AS TIMESTAMP_LTZ(6)) AS window_start,
    CAST(window_end AS TIMESTAMP_LTZ(6)) AS window_end,
    saga_name,
    step_name,
    phase,
    bucket,
    COUNT(*) AS `count`
FROM TABLE(TUMBLE(TABLE timed_steps, DESCRIPTOR(event_time), INTERVAL '1' MINUTE))
GROUP BY window_start, window_end, saga_name, step_name, phase, bucket
