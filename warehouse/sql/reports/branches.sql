-- Given that a step failed the saga, what became of it: each outcome's share, and what it cost.
-- Wasted is the work later undone plus the undoing.
-- Span: 7 days
-- Chart: ranking x=sagas y=saga_name,failing_step color=outcome
SELECT saga_name, failing_step, outcome, count(*) AS sagas,
    sagas / sum(sagas) OVER (PARTITION BY saga_name, failing_step) AS share,
    quantile_cont(total_ms, 0.5) AS p50_ms,
    avg(wasted_ms) AS avg_wasted_ms,
    avg(len(residual_effects)) AS avg_residual_effects
FROM asked_saga_runs(saga, attribute, span)
WHERE failing_step IS NOT NULL
GROUP BY saga_name, failing_step, outcome
ORDER BY saga_name, failing_step, sagas DESC, outcome
