"""The account of the topic: per partition, offsets = stored + duplicates + rejected + expired + missing + lag.

It reads the topic itself, so that it trusts nobody's counters, and can compare each stored row with its record.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import duckdb

from warehouse import history, topic
from warehouse.catalog import open_catalog
from warehouse.record_rows import REFUSED_HASH, ROW_HASH, Judge, as_rows
from warehouse.retention import kept_since
from warehouse.tables import EVENTS, REJECTED_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kafka import KafkaConsumer, TopicPartition

    from warehouse.settings import Settings

SHOWN = 20
"""How many offsets and ids are named; the counts are whole."""
NEAR = 5_000
"""Offsets without a row that are no further apart are read in one go: seeking costs more than reading on."""


class PartitionBalance(NamedTuple):
    """One partition's account of the offsets in [begin, end): each is one of stored, duplicates, rejected, expired, missing, lag."""

    partition: int
    """-1: rows that name no partition or topic."""
    begin: int
    end: int
    before: int
    """Rows at offsets below begin: they are not compared."""
    stored: int
    """Offsets that have a row in `events`."""
    duplicates: int
    """Valid events without a row whose event id is stored at another offset."""
    rejected: int
    """Records that are no valid event and have a row in `rejected_events`."""
    missing: int
    """Lost: with a row in neither table, or rejected though valid, up to the last offset that has a row."""
    lag: int
    """The same after it: the job has them still to do."""
    doubled: int
    """Rows beyond the first of their offset, in both tables together."""
    altered: int
    """Offsets whose row is not what the topic has there; only where rows were compared."""
    expired: int = 0
    """Without a row, and older than the tables are kept: see `warehouse.retention`."""

    @property
    def is_whole(self) -> bool:
        """Nothing differs from the topic; lag is no difference."""
        return not (self.missing or self.doubled or self.altered)


class Finding(NamedTuple):
    """One offset that differs."""

    partition: int
    offset: int
    what: str


class Repeated(NamedTuple):
    """An event id with rows at more than one offset: it came again after the job had forgotten it."""

    event_id: str
    offsets: str
    """`partition:offset` of each, in order."""


class Account(NamedTuple):
    """What `audit` found."""

    partitions: list[PartitionBalance]
    findings: list[Finding]
    """The first 20."""
    found: int
    """How many there are."""
    repeated: list[Repeated]
    """The first 20."""
    repeated_ids: int
    """How many there are."""
    lasts: dict[int, int]
    """The last offset of each partition that has a row: for a second look, `audit(…, lasts=…)`."""

    @property
    def is_whole(self) -> bool:
        """Nothing differs from the topic; neither lag nor a repeated id is a difference."""
        return all(partition.is_whole for partition in self.partitions)


def read_ends(settings: Settings) -> dict[int, int]:
    """The end offset of each partition of the topic.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    with topic.consuming(settings) as consumer:
        ends = consumer.end_offsets(topic.partitions_of(consumer, settings))
        return {partition.partition: offset for partition, offset in ends.items()}


def balance(settings: Settings, begins: Mapping[int, int] | None = None) -> list[PartitionBalance]:
    """The account of every partition, from `begins` (else from the topic's first offset) to its end now.

    Only records without a row are read, so the cost grows with them; rows are not compared with their records.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    return _account(settings, begins, None, compare=False).partitions


def audit(
    settings: Settings, begins: Mapping[int, int] | None = None, lasts: Mapping[int, int] | None = None
) -> Account:
    """The same, and each stored row compared with its record: the whole topic is read, in batches.

    Takes about 200 bytes of memory a stored row.

    Args:
        settings: Names topic and tables.
        begins: First offset of each partition, else the topic's own.
        lasts: What comes after these offsets is lag; else after the last one that has a row. For a second look, when
            the job has had time to commit to one table what it had committed to another.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    return _account(settings, begins, lasts, compare=True)


def _account(
    settings: Settings, begins: Mapping[int, int] | None, lasts: Mapping[int, int] | None, *, compare: bool
) -> Account:
    with (
        topic.consuming(settings) as consumer,
        history.open(settings) as tables,
        duckdb.connect(":memory:") as ledger,
    ):
        partitions = topic.partitions_of(consumer, settings)
        with closing(open_catalog(settings)) as catalog:
            ledger.execute(
                "CREATE TABLE kept_since AS SELECT ?::TIMESTAMPTZ AS events, ?::TIMESTAMPTZ AS rejected",
                [kept_since(catalog, [table]) for table in (EVENTS, REJECTED_EVENTS)],
            )
        _take_down(ledger, tables, settings.topic, compare=compare)
        starts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)  # after the rows
        for partition in partitions:
            number = partition.partition
            begin, end = max(starts[partition], (begins or {}).get(number, 0)), ends[partition]
            [(last,)] = ledger.execute(
                "SELECT coalesce(max(o), -1) FROM rows WHERE p = ? AND o < ?", [number, end]
            ).fetchall()
            last = (lasts or {}).get(number, last)
            ledger.execute("INSERT INTO bounds VALUES (?, ?, ?, ?)", [number, begin, end, last])
            for offsets in [(begin, end)] if compare else list(_gaps(ledger, number, begin, end)):
                _read(ledger, Judge(tables, settings.topic), consumer, partition, offsets)
        return _conclude(ledger, tables)


def _take_down(ledger: duckdb.DuckDBPyConnection, tables: history.History, name: str, *, compare: bool) -> None:
    """Make the ledger's tables; `rows` is what both tables hold, as offsets and hashes: 25 bytes a row."""
    ledger.execute(
        """
        CREATE TABLE rows (kept BOOLEAN, p INTEGER, o BIGINT, id UBIGINT, hash UBIGINT);
        CREATE TABLE odd (p INTEGER, o BIGINT, id UBIGINT, kind VARCHAR);
        CREATE TABLE bounds (p INTEGER, begins BIGINT, ends BIGINT, last BIGINT);
        """
    )
    for table, kept, identity, content in (
        ("events", True, "hash(event_id)", ROW_HASH),
        ("rejected_events", False, "NULL", REFUSED_HASH),
    ):
        reader = tables.sql(
            f"""
            SELECT {kept}, CASE WHEN source_topic IS NULL THEN -1 ELSE coalesce(source_partition, -1) END,
                coalesce(source_offset, -1), {identity}, {content if compare else "NULL"}
            FROM {table} WHERE source_topic = $topic OR source_topic IS NULL
            """,  # noqa: S608 - ours
            {"topic": name},
        ).to_arrow_reader(100_000)
        ledger.register("read", reader)
        ledger.execute("INSERT INTO rows SELECT * FROM read")
        ledger.unregister("read")


def _gaps(ledger: duckdb.DuckDBPyConnection, partition: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of offsets in [begin, end) that hold all those without a row; ranges near to one another are one."""
    found = ledger.execute(
        """
        WITH bound AS (
            SELECT DISTINCT o FROM rows WHERE p = $partition AND o >= $begin AND o < $end
            UNION SELECT $begin - 1 UNION SELECT $end::BIGINT
        )
        SELECT o + 1, following
        FROM (SELECT o, lead(o) OVER (ORDER BY o) AS following FROM bound)
        WHERE following > o + 1
        ORDER BY 1
        """,
        {"partition": partition, "begin": begin, "end": end},
    ).fetchall()
    open_range: tuple[int, int] | None = None
    for first, until in found:
        if open_range and first - open_range[1] <= NEAR:
            open_range = open_range[0], until
            continue
        if open_range:
            yield open_range
        open_range = first, until
    if open_range:
        yield open_range


def _read(
    ledger: duckdb.DuckDBPyConnection,
    judge: Judge,
    consumer: KafkaConsumer,
    partition: TopicPartition,
    offsets: tuple[int, int],
) -> None:
    """Note what is odd of the offsets in [first, until)."""
    for begin, end, records in topic.read(consumer, partition, *offsets):
        ledger.register("record", as_rows(records))
        found = ledger.sql(
            f"""
            WITH held AS (
                SELECT o, bool_or(kept) AS kept, bool_or(NOT kept) AS refused, min(hash) FILTER (kept) AS lowest,
                    max(hash) FILTER (kept) AS highest, min(hash) FILTER (NOT kept) AS refused_lowest,
                    max(hash) FILTER (NOT kept) AS refused_highest
                FROM rows WHERE p = $p AND o >= $begin AND o < $end GROUP BY o
            ), recorded AS (
                SELECT o, is_event, hash(event_id) AS id,
                    CASE WHEN is_event THEN "timestamp" < kept_since.events ELSE record_time < kept_since.rejected END AS is_old,
                    CASE WHEN is_event THEN {ROW_HASH} ELSE {REFUSED_HASH} END AS hash
                FROM record, kept_since
            )
            SELECT * FROM (
                SELECT o, id, CASE
                    WHEN is_event IS NULL THEN 'no record'
                    WHEN NOT is_event AND kept THEN 'no event'
                    WHEN is_event AND kept AND (hash <> lowest OR hash <> highest) THEN 'altered'
                    WHEN NOT is_event AND refused AND (hash <> refused_lowest OR hash <> refused_highest)
                        THEN 'altered rejected'
                    WHEN is_event AND refused AND NOT kept THEN 'rejected though valid'
                    WHEN kept IS NULL AND is_old THEN 'expired'
                    WHEN kept IS NULL AND is_event THEN 'no row'
                    WHEN kept IS NULL THEN 'not rejected'
                END AS kind
                FROM recorded FULL JOIN held USING (o)
            ) WHERE kind IS NOT NULL
            """,  # noqa: S608 - ours
            params={"p": partition.partition, "begin": begin, "end": end},
        ).to_arrow_table()
        ledger.unregister("record")
        ledger.register("found", judge.without_equal(found, records))
        ledger.execute("INSERT INTO odd SELECT $p, o, id, kind FROM found", {"p": partition.partition})
        ledger.unregister("found")


_FINDINGS = """
CREATE TABLE finding AS
WITH looked AS (
    SELECT odd.p, o, odd.id, kind, o > last AS after,
        kind = 'no row' AND odd.id IN (SELECT id FROM rows WHERE kept) AS is_duplicate
    FROM odd JOIN bounds USING (p)
), told AS (
    SELECT p, o, CASE
        WHEN is_duplicate THEN 'duplicate'
        WHEN kind = 'expired' THEN 'expired'
        WHEN kind IN ('no row', 'not rejected') AND after THEN 'lag'
        WHEN kind = 'no row' AND row_number() OVER (PARTITION BY id, kind, after ORDER BY p, o) > 1 THEN 'duplicate'
        WHEN kind IN ('no row', 'not rejected', 'rejected though valid') THEN 'missing'
        ELSE 'altered'
    END AS class, kind
    FROM looked
)
SELECT p, o, class, kind, 1 AS times FROM told
UNION ALL
SELECT p, o, 'doubled', count(*) || ' rows', count(*) - 1 FROM rows JOIN bounds USING (p)
WHERE o >= begins AND o < ends GROUP BY p, o HAVING count(*) > 1
UNION ALL
SELECT p, o, 'altered', 'no such offset', count(*) FROM rows LEFT JOIN bounds USING (p)
WHERE ends IS NULL OR o < 0 OR o >= ends GROUP BY p, o
"""
_WHAT = {
    "no row": "a valid event in neither table",
    "not rejected": "no valid event, and not in rejected_events",
    "rejected though valid": "a valid event in rejected_events",
    "no record": "a row where the topic has no record",
    "no such offset": "a row that names no offset of the topic",
    "no event": "a row in events whose record is no valid event",
    "altered": "a row in events that is not what its record says",
    "altered rejected": "a row in rejected_events that is not its record",
}


def _conclude(ledger: duckdb.DuckDBPyConnection, tables: history.History) -> Account:
    ledger.execute(_FINDINGS)
    balances = ledger.execute(
        """
        WITH classes AS (
            SELECT p, count(*) FILTER (class = 'duplicate') AS duplicates,
                count(*) FILTER (class = 'missing') AS missing, count(*) FILTER (class = 'expired') AS expired,
                count(*) FILTER (class = 'lag') AS lag, sum(times) FILTER (class = 'doubled') AS doubled,
                sum(times) FILTER (class = 'altered') AS altered,
                count(*) FILTER (kind = 'rejected though valid') AS wrongly
            FROM finding GROUP BY p
        ), held AS (
            SELECT p, o, bool_or(kept) AS kept, count(*) AS times FROM rows GROUP BY p, o
        ), counts AS (
            SELECT p, sum(times) FILTER (o < begins AND o >= 0) AS before,
                count(*) FILTER (o >= begins AND o < ends AND kept) AS stored,
                count(*) FILTER (o >= begins AND o < ends AND NOT kept) AS rejected
            FROM held JOIN bounds USING (p) GROUP BY p
        )
        SELECT p, coalesce(begins, 0), coalesce(ends, 0), coalesce(before, 0), coalesce(stored, 0),
            coalesce(duplicates, 0), coalesce(rejected, 0) - coalesce(wrongly, 0), coalesce(missing, 0),
            coalesce(lag, 0), coalesce(doubled, 0), coalesce(altered, 0), coalesce(expired, 0)
        FROM bounds FULL JOIN classes USING (p) LEFT JOIN counts USING (p)
        ORDER BY p
        """
    ).fetchall()
    differing = "FROM finding WHERE class NOT IN ('duplicate', 'expired', 'lag')"
    [(found,)] = ledger.execute(f"SELECT count(*) {differing}").fetchall()
    findings = ledger.execute(f"SELECT p, o, kind {differing} ORDER BY p, o LIMIT {SHOWN}").fetchall()
    again = "FROM rows WHERE kept GROUP BY id HAVING min(p) <> max(p) OR min(o) <> max(o)"
    [(repeated_ids,)] = ledger.execute(f"SELECT count(*) FROM (SELECT id {again})").fetchall()  # noqa: S608 - ours
    hashes = ledger.execute(f"SELECT id {again} ORDER BY min(p), min(o) LIMIT {SHOWN}").fetchall()
    return Account(
        [PartitionBalance(*(int(number) for number in row)) for row in balances],
        [Finding(p, o, _WHAT.get(kind, kind)) for p, o, kind in findings],
        found,
        _named(tables, [row[0] for row in hashes]),
        repeated_ids,
        dict(ledger.execute("SELECT p, last FROM bounds").fetchall()),
    )


def _named(tables: history.History, hashes: Iterable[int]) -> list[Repeated]:
    if not (listed := ", ".join(map(str, hashes))):
        return []
    rows = tables.sql(
        f"""
        SELECT event_id, string_agg(DISTINCT source_partition || ':' || source_offset, ' ')
        FROM events WHERE hash(event_id) IN ({listed}) GROUP BY 1 ORDER BY min((source_partition, source_offset))
        """  # noqa: S608 - numbers
    ).fetchall()
    return [
        Repeated(event_id, " ".join(sorted(offsets.split(), key=lambda at: tuple(map(int, at.split(":"))))))
        for event_id, offsets in rows
    ]
