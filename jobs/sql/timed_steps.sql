-- Each end of a step or of a compensation whose duration is known, with the bucket that it falls into: bucket 0 holds
-- 0 ms, and each one after it is 1.01 / 0.99 times as wide as the one before (DDSketch, arXiv 1908.10693, at 1 %).
CREATE TEMPORARY VIEW timed_steps AS
SELECT
    event_time,
    saga_name,
    step_name,
    phase,
    CASE
        WHEN duration_ms = 0 THEN 0
        ELSE 1 + CAST(FLOOR(LN(CAST(duration_ms AS DOUBLE)) / LN(1.01e0 / 0.99e0)) AS INT)
    END AS bucket
FROM ended_steps
WHERE duration_ms IS NOT NULL
