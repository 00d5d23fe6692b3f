-- Some of the rows that fail a rule: their key, and what is wrong with them.
SELECT ${key}, ${what} AS what
FROM ${relation}
WHERE ${fails}
ORDER BY ALL
LIMIT ${shown}
