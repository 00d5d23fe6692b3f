-- The ways that sagas take: the steps done in their order, then the one that failed (`!`), then those undone (`-`).
-- Share is that of the kind's runs.
-- Span: 7 days
-- Chart: ranking x=sagas y=variant color=saga_name
SELECT saga_name,
    array_to_string(
        steps_done
        || CASE WHEN failing_step IS NULL THEN [] ELSE ['!' || failing_step] END
        || list_transform(steps_undone, lambda step: '-' || step),
        ' > '
    ) AS variant,
    outcome, count(*) AS sagas,
    sagas / sum(sagas) OVER (PARTITION BY saga_name) AS share,
    quantile_cont(total_ms, 0.5) AS p50_ms,
    arg_max(saga_id, ended_at) AS example
FROM asked_saga_runs(saga, attribute, span)
GROUP BY saga_name, variant, outcome
ORDER BY saga_name, sagas DESC, variant, outcome
