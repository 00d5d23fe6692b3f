-- How many of the sagas that ended have failed, by kind, over the last five minutes.
-- Failed is what did not complete, whatever could be undone. From the statistics: whole windows.
-- Span: 5 minutes
-- Chart: bar x=saga_name y=failure_rate
SELECT saga_name, sum(completed + rolled_back + failed)::BIGINT AS ended,
    sum(completed)::BIGINT AS completed,
    sum(rolled_back + failed)::BIGINT AS failed,
    sum(rolled_back + failed) / ended AS failure_rate,
    max(window_end) FILTER (completed + rolled_back + failed > 0) AS up_to
FROM asked_saga_stats(saga, attribute, span)
GROUP BY saga_name
HAVING ended > 0
ORDER BY failure_rate DESC, ended DESC, saga_name
