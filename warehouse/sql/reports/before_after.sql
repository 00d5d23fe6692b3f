-- What changed at a moment, by kind of saga: the failure rate and the durations before and after, and whether by chance.
-- Failures: p of a two-sided two-proportion z-test, pooled; NULL where fewer than five failures or successes are expected on
-- a side. Durations, of completed sagas: p of a two-sided Mann-Whitney U test, normal with corrections for ties and
-- continuity; NULL where a side has fewer than eight. Slower is the share of pairs in which the later one took longer, ties
-- half. Changed means p below 0.05: of twenty kinds one seems to have by chance.
-- Span: 7 days
-- Takes: moment
-- Chart: bar x=saga_name y=failure_rate_before,failure_rate_after
-- The tests: Mann and Whitney, Annals of Mathematical Statistics 18 (1947) 50; ties: Lehmann, Nonparametrics (1975) 1.2;
-- two proportions: Fleiss, Statistical Methods for Rates and Proportions (2003) 3.2. Its erfc: Press et al., Numerical
-- Recipes 6.2, off by at most 1.2e-7 of its value.
WITH sides AS (
    SELECT saga_name, outcome <> 'completed' AS is_failure, total_ms, ended_at >= moment::TIMESTAMPTZ AS is_after
    FROM asked_saga_runs(saga, attribute, span)
    WHERE moment IS NOT NULL OR error('before_after compares before with after a moment: moment := TIMESTAMPTZ ''…''')
), failures AS (
    SELECT saga_name,
        count(*) FILTER (NOT is_after) AS sagas_before,
        count(*) FILTER (is_after) AS sagas_after,
        count(*) FILTER (is_failure AND NOT is_after) / nullif(sagas_before, 0) AS failure_rate_before,
        count(*) FILTER (is_failure AND is_after) / nullif(sagas_after, 0) AS failure_rate_after,
        count(*) FILTER (is_failure) / count(*) AS pooled,
        least(pooled, 1 - pooled) * least(sagas_before, sagas_after) AS least_expected,
        quantile_cont(total_ms, 0.5) FILTER (NOT is_failure AND NOT is_after) AS p50_ms_before,
        quantile_cont(total_ms, 0.5) FILTER (NOT is_failure AND is_after) AS p50_ms_after
    FROM sides
    GROUP BY saga_name
), valued AS (
    SELECT saga_name, total_ms, count(*)::DOUBLE AS tied,
        count(*) FILTER (NOT is_after)::DOUBLE AS earlier, count(*) FILTER (is_after)::DOUBLE AS later
    FROM sides
    WHERE NOT is_failure AND total_ms IS NOT NULL
    GROUP BY saga_name, total_ms
), ranked AS (
    SELECT *, sum(earlier) OVER (PARTITION BY saga_name ORDER BY total_ms) - earlier / 2 AS quicker_earlier FROM valued
), durations AS (
    SELECT saga_name, sum(later * quicker_earlier) AS u, sum(earlier) AS n, sum(later) AS m,
        n * m / 12 * (n + m + 1 - sum(tied ** 3 - tied) / nullif((n + m) * (n + m - 1), 0)) AS variance
    FROM ranked
    GROUP BY saga_name
), scored AS (
    SELECT failures.*, u / nullif(n * m, 0) AS slower,
        CASE WHEN least_expected >= 5 THEN abs(failure_rate_after - failure_rate_before)
            / sqrt(pooled * (1 - pooled) * (1 / sagas_before + 1 / sagas_after)) END AS failure_z,
        CASE WHEN least(n, m) >= 8 AND variance > 0 THEN greatest(abs(u - n * m / 2) - 0.5e0, 0) / sqrt(variance) END
            AS duration_z
    FROM failures
    LEFT JOIN durations USING (saga_name)
), judged AS (
    SELECT *, list_transform([failure_z, duration_z], lambda z: {'z': z / sqrt(2), 't': 1 / (1 + z / sqrt(8))}) AS tested,
        list_transform(tested, lambda s: s.t * exp(-s.z * s.z - 1.26551223e0 + s.t * (1.00002368e0 + s.t * (0.37409196e0
            + s.t * (0.09678418e0 + s.t * (-0.18628806e0 + s.t * (0.27886807e0 + s.t * (-1.13520398e0
            + s.t * (1.48851587e0 + s.t * (-0.82215223e0 + s.t * 0.17087277e0)))))))))) AS p
    FROM scored
)
SELECT saga_name, sagas_before, sagas_after, failure_rate_before, failure_rate_after, p[1] AS failure_p,
    p[1] < 0.05e0 AS failure_rate_changed, p50_ms_before, p50_ms_after, slower, p[2] AS duration_p,
    p[2] < 0.05e0 AS duration_changed
FROM judged
ORDER BY least(coalesce(failure_p, 1), coalesce(duration_p, 1)), saga_name
