-- Each week, from Monday (UTC), by kind of saga: how many ended, how many failed, and how long they took.
-- Change is that of the failure rate against the week before in which one of the kind ended. From the statistics.
-- Span: 84 days
-- Chart: line x=week y=failure_rate color=saga_name
SELECT begin AS "week", * EXCLUDE (begin)
FROM asked_trend(saga, attribute, span, 'week')
ORDER BY "week", saga_name
