-- What is older than the shortest sliding window, by the shortest one that it is in: computed once in 10 s, as a rule.
SELECT "key", bucket, ${sums},
    CASE WHEN window_start >= $$since_1 THEN 1 WHEN window_start >= $$since_2 THEN 2 ELSE 3 END AS span
FROM ${windows}
WHERE window_start >= $$since_3 AND window_start < $$since_0
GROUP BY ALL
