-- Of each sliding window (0: the shortest, each within the next): a row a ${key}, and one over all, where that is NULL.
-- Percentiles are those of merged buckets: nearest rank, at most 1 % off. Counts are not summed as 128 bit.
WITH placed AS (
    SELECT ${key}, bucket, ${span} AS span, ${sums}
    FROM ${windows}
    WHERE window_start >= $$since AND window_start < $$until
    GROUP BY ALL
), spanned AS (
    SELECT spans.span, ${key}, bucket, ${sums}
    FROM placed JOIN (VALUES (0), (1), (2), (3)) AS spans(span) ON placed.span <= spans.span
    GROUP BY GROUPING SETS ((spans.span, ${key}, bucket), (spans.span, bucket))
), ranked AS (
    SELECT *, ${bucket_ms} AS ms,
        sum(timed) OVER (PARTITION BY span, ${key} ORDER BY bucket) AS up_to,
        sum(timed) OVER (PARTITION BY span, ${key}) AS of_all
    FROM spanned
)
SELECT span, ${key}, ${sums},
    min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 50) AS p50_ms,
    min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 95) AS p95_ms,
    min(ms) FILTER (timed > 0 AND up_to * 100 >= of_all * 99) AS p99_ms
FROM ranked
GROUP BY span, ${key}
ORDER BY span, ${key}
