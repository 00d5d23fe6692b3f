-- ${settled} holds, by key, bucket and the shortest span that it is in, what is older than the shortest span.
-- Of each sliding window (0: the shortest, each within the next): a row a key, and one over all, where that is NULL.
-- Percentiles are those of merged buckets: nearest rank, at most 1 % off. Counts are not summed as 128 bit.
WITH placed AS (
    SELECT "key", bucket, span, ${names} FROM ${settled}
    UNION ALL
    SELECT "key", bucket, 0, ${sums} FROM ${windows} WHERE window_start >= $$since AND window_start < $$until GROUP BY ALL
), spanned AS (
    SELECT spans.span, "key", bucket, ${sums}
    FROM placed JOIN (VALUES (0), (1), (2), (3)) AS spans(span) ON placed.span <= spans.span
    GROUP BY GROUPING SETS ((spans.span, "key", bucket), (spans.span, bucket))
), ranked AS (
    SELECT *, ${bucket_ms} AS ms,
        sum(timed) OVER (PARTITION BY span, "key" ORDER BY bucket) AS up_to,
        sum(timed) OVER (PARTITION BY span, "key") AS of_all
    FROM spanned
), figures AS (
    SELECT span, "key", ${sums},
        min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 50) AS p50_ms,
        min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 95) AS p95_ms,
        min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 99) AS p99_ms
    FROM ranked
    GROUP BY span, "key"
)
SELECT span, saga_name, step_name, phase, figures.* EXCLUDE (span, "key")
FROM figures LEFT JOIN keys USING ("key")
ORDER BY span, saga_name, step_name, phase
