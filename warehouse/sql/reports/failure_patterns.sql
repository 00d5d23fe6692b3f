-- Why sagas fail: their errors, those put together that differ only in numbers, ids and quoted values.
-- Such a value is `#` in the pattern; example is the newest saga with it.
-- Span: 7 days
-- Chart: ranking x=sagas y=error_type,pattern
SELECT error_type,
    regexp_replace(
        regexp_replace(
            error_message, '\B"[^"]*"\B|\B''[^'']*''\B|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F-]{22}', '#', 'g'
        ),
        '0x[0-9a-fA-F]+|\b(?:[a-zA-Z_]+-)?[0-9a-fA-F]*[0-9][0-9a-fA-F]*(?:[.,:][0-9]+)*', '#', 'g'
    ) AS pattern,
    count(*) AS sagas,
    sagas / sum(sagas) OVER () AS share,
    list_sort(list(DISTINCT saga_name)) AS saga_names,
    list_sort(list(DISTINCT failing_step) FILTER (failing_step IS NOT NULL)) AS failing_steps,
    min(ended_at) AS first_at,
    max(ended_at) AS last_at,
    arg_max(saga_id, ended_at) AS example
FROM asked_saga_runs(saga, attribute, span)
WHERE outcome <> 'completed'
GROUP BY error_type, pattern
ORDER BY sagas DESC, error_type, pattern
