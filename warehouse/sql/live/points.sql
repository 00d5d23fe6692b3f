-- Of each of these windows a point of the series.
WITH merged AS (
    SELECT window_start, bucket, sum(timed::DOUBLE) AS timed
    FROM step_windows WHERE list_contains($$starts, window_start) AND timed > 0
    GROUP BY ALL
), ranked AS (
    SELECT *, ${bucket_ms} AS ms, sum(timed) OVER (PARTITION BY window_start ORDER BY bucket) AS up_to,
        sum(timed) OVER (PARTITION BY window_start) AS of_all
    FROM merged
), steps AS (
    SELECT window_start,
        min(ms) FILTER (up_to * 100 >= of_all * 50) AS p50_ms,
        min(ms) FILTER (up_to * 100 >= of_all * 95) AS p95_ms,
        min(ms) FILTER (up_to * 100 >= of_all * 99) AS p99_ms
    FROM ranked
    GROUP BY window_start
), sagas AS (
    SELECT window_start, sum(started::DOUBLE)::INTEGER AS started, sum(completed::DOUBLE)::INTEGER AS completed,
        sum((rolled_back + failed)::DOUBLE)::INTEGER AS failed
    FROM saga_windows WHERE list_contains($$starts, window_start)
    GROUP BY window_start
)
SELECT window_start, coalesce(started, 0), coalesce(completed, 0), coalesce(failed, 0), p50_ms, p95_ms, p99_ms
FROM steps FULL JOIN sagas USING (window_start)
