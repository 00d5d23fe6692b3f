-- How many rows there are, and how many of them fail each rule.
SELECT count(*) AS "rows", ${counts}
FROM ${relation}
