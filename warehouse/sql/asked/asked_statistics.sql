-- The rows of a statistic that a report is asked about. No statistic knows of attributes: those of a slice are computed
-- from its events, which takes longer; where there is nothing to slice by, that half is empty, and no file is opened for it.
SELECT * FROM ${statistic}
WHERE cardinality(attribute::MAP(VARCHAR, VARCHAR)) = 0
    AND saga_name GLOB saga
    AND (span IS NULL OR window_start >= as_of() - span)
UNION ALL BY NAME
SELECT *, FALSE AS "open" FROM (${computed})
WHERE ${since} AND (span IS NULL OR window_start >= as_of() - span)
