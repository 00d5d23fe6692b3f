-- Each day (UTC) by kind of saga: how many ended, how many failed, and how long they took.
-- Change is that of the failure rate against the day before on which one of the kind ended. From the statistics.
-- Span: 30 days
-- Chart: line x=day y=failure_rate color=saga_name
SELECT begin AS "day", * EXCLUDE (begin)
FROM asked_trend(saga, attribute, span, 'day')
ORDER BY "day", saga_name
