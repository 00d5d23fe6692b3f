-- Sagas that took far longer or shorter than others of their kind with their outcome: a modified z-score above 3.5.
-- Score is 0.6745 (x - median) / MAD, MAD the median absolute deviation: unlike a mean, one outlier moves neither.
-- Kinds with fewer than ten such runs, or half of them exactly as long as the median, are left out.
-- Span: 7 days
-- Chart: scatter x=ended_at y=total_ms color=saga_name
WITH centred AS (
    SELECT *, quantile_cont(total_ms, 0.5) OVER kind AS median_ms, count(total_ms) OVER kind AS timed
    FROM asked_saga_runs(saga, attribute, span)
    WINDOW kind AS (PARTITION BY saga_name, outcome)
), spread AS (
    SELECT *, quantile_cont(abs(total_ms - median_ms), 0.5) OVER (PARTITION BY saga_name, outcome) AS mad_ms
    FROM centred
    WHERE timed >= 10
)
SELECT saga_name, saga_id, run_id, outcome, ended_at, total_ms, median_ms, mad_ms,
    0.6745e0 * (total_ms - median_ms) / mad_ms AS score
FROM spread
WHERE mad_ms > 0 AND abs(score) > 3.5
ORDER BY abs(score) DESC, run_id
