-- Keys that more than one row of the partition has. By their hashes first: 8 bytes a key in memory instead of the key.
WITH doubled AS MATERIALIZED (
    SELECT hash(${key}) AS key_hash FROM partition_rows GROUP BY key_hash HAVING count(*) > 1
)
SELECT ${key}, count(*) AS times
FROM partition_rows SEMI JOIN doubled ON hash(${key}) = key_hash
GROUP BY ${key}
HAVING count(*) > 1
