"""Kafka and the topic: reached, kept as long as needed, and with clocks that agree with this one."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import KafkaError

from pipelines import processes, stack
from pipelines.doctor.findings import Finding, counted, fault, ok, size, warning
from pipelines.doctor.tables import reading
from sagascope.events import FARTHEST_AHEAD_MS, InvalidEventError, decode
from warehouse import topic as records
from warehouse.progress import NOTHING, Progress, read_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka.consumer.fetcher import ConsumerRecord

    from warehouse.settings import Settings

REACH_MS = 5_000
NEWEST = 200
"""How many of each partition's newest records are looked at for their clocks."""
AHEAD_MS = 5_000
RECORD_BYTES = 1 << 20
"""What a producer may send by default; less room on the broker's side refuses what a service could have sent."""
UNSTORED_SHARE = 0.5
DAY_MS = 86_400_000
"""A topic that forgets sooner than this does not outlast one bad night."""


def broker(settings: Settings) -> list[Finding]:
    """The Kafka in use answers. All other checks of Kafka are for where it does: `ok` is all that is returned then."""
    if settings.bootstrap_servers:
        servers, name = (
            settings.bootstrap_servers,
            f"the Kafka at SAGASCOPE_BOOTSTRAP_SERVERS={settings.bootstrap_servers}",
        )
        cure = "start it, or set the variable to where it is; unset, Sagascope uses a broker of its own"
    else:
        local = stack.status(settings)
        if local is None:
            cure = "`sagascope up` starts one; or set SAGASCOPE_BOOTSTRAP_SERVERS=host:port"
            return [warning("kafka", "no broker was started here yet", cure)]
        if local.pid == stack.STOPPED:
            return [warning("kafka", "the local broker was stopped", "`sagascope up` starts it")]
        log = settings.logs / "kafka.log"
        if local.process is None:
            what = (
                f"the local broker (pid {local.pid}) has ended by itself; its log ends: {processes.last_lines(log, 2)}"
            )
            return [fault("kafka", what, f"read {log}; `sagascope up` starts it again")]
        servers, name = local.bootstrap_servers, f"the local broker (pid {local.pid}, port {local.port})"
        cure = f"read {log}; `sagascope down` and `sagascope up` start it anew"
    try:
        with closing(_admin(servers)) as admin:
            nodes = admin.describe_cluster()["brokers"]
    except (KafkaError, OSError, ValueError) as error:
        return [fault("kafka", f"{name} does not answer: {str(error) or type(error).__name__}", cure)]
    return [ok("kafka", f"{name} answers; {counted(len(nodes), 'broker')}")]


def topics(settings: Settings) -> list[Finding]:
    """Both topics are there, and are kept as they have to be."""
    with closing(_admin(settings.bootstrap_servers)) as admin:
        there = admin.list_topics()
        findings = []
        for name, check in ((settings.topic, _of_events), (settings.definitions_topic, _of_definitions)):
            if name not in there:
                what = f"there is no topic {name} at {settings.bootstrap_servers}: what is sent to it is refused"
                findings.append(fault("topic", what, "`sagascope up` makes it"))
                continue
            described = admin.describe_configs([ConfigResource("TOPIC", name)], config_filter="all")
            config = {key: _value(told) for key, told in described["topic"][name].items()}
            partitions = len(admin.describe_topics([name])[0]["partitions"])
            found = check(name, config, partial(_alter, settings, name))
            findings += found or [ok("topic", f"{name}: {counted(partitions, 'partition')}, {_kept(config)}")]
        return findings


def offsets(settings: Settings) -> list[Finding]:
    """Whether the topic has lost, or may soon lose, what the tables have not stored yet."""
    try:
        bounds = records.bounds_of(settings)
    except ValueError:  # there is no such topic, as `topics` says
        return []
    stored = _progress(settings)
    lasts = {number: stored.last(number) for number in bounds}
    findings = []
    for number, deleted in stored.deleted(bounds).items():
        what = (
            f"partition {number} of {settings.topic} begins at offset {deleted.stop}, and the tables end at "
            f"{deleted.start - 1}: {len(deleted)} records were deleted unseen"
        )
        cure = (
            f"they are lost; raise retention.bytes ({_alter(settings, settings.topic, 'retention.bytes=-1')}) and keep "
            "the job running"
        )
        findings.append(fault("topic", what, cure))
    for number, (begin, _) in bounds.items():
        if begin > 0 and not (stored.events or stored.rejected):
            what = f"partition {number} of {settings.topic} begins at offset {begin}: what was before will not be in the tables"
            findings.append(warning("topic", what, "none, if that is meant; else import it from where it is kept"))
    findings += _room(settings, bounds, lasts)
    lag = sum(end - 1 - max(lasts[number], begin - 1) for number, (begin, end) in bounds.items())
    return findings or [
        ok("topic", f"the tables have all of {settings.topic} or can still get it; {lag:,} records to do")
    ]


def clocks(settings: Settings) -> list[Finding]:
    """This machine's clock against what the services wrote into their newest events, the only clocks there are to see."""
    now = datetime.now(UTC).timestamp() * 1000
    seen, ahead, refused = 0, Counter[str](), Counter[str]()
    farthest = 0.0
    for record in _newest(settings):
        try:
            event = decode(record.value or b"")
        except InvalidEventError:
            continue
        seen += 1
        who = event.service or event.saga_name
        ahead[who] += event.timestamp > now + AHEAD_MS
        refused[who] += event.timestamp > record.timestamp + FARTHEST_AHEAD_MS
        farthest = max(farthest, event.timestamp - now)
    if not seen:
        return [ok("clock", f"{settings.topic} holds no event whose time could be compared with this machine's clock")]
    compared = f"the newest {seen:,} events of {settings.topic} against this machine's clock"
    cure = "set the clocks of these services' machines by NTP; if theirs are right, this machine's"
    if who := ", ".join(sorted(+refused)):
        what = f"{compared}: {refused.total()} are over 5 minutes ahead of their records, and so rejected ({who})"
        return [fault("clock", what, cure)]
    if who := ", ".join(sorted(+ahead)):
        what = f"{compared}: {ahead.total()} are ahead, by up to {farthest / 1000:.0f} s, and close windows too early ({who})"
        return [warning("clock", what, cure)]
    return [ok("clock", f"{compared}: none is more than {AHEAD_MS // 1000} s ahead")]


def _newest(settings: Settings) -> Iterator[ConsumerRecord]:
    """The last records of each partition; none where there is no such topic."""
    with records.consuming(settings) as consumer:
        try:
            partitions = records.partitions_of(consumer, settings)
        except ValueError:
            return
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        for one in partitions:
            for _, _, batch in records.read(consumer, one, max(begins[one], ends[one] - NEWEST), ends[one]):
                yield from batch


def _of_events(name: str, config: dict[str, str], alter: Callable[[str], str]) -> list[Finding]:
    findings = []
    if (kept := config.get("retention.ms", "-1")) != "-1":
        what = (
            f"{name} has retention.ms={kept}: brokers delete by the records' own timestamps, so events sent late or while "
            "the job is down go unseen; the topic is to keep by bytes"
        )
        found = fault if int(kept) < DAY_MS else warning
        findings.append(found("topic", what, alter("retention.ms=-1")))
    if (policy := config.get("cleanup.policy", "delete")) != "delete":
        what = f"{name} has cleanup.policy={policy}: of each saga only its last event stays"
        findings.append(fault("topic", what, alter("cleanup.policy=delete")))
    if (kind := config.get("message.timestamp.type", "CreateTime")) != "CreateTime":
        what = f"{name} has message.timestamp.type={kind}: when a record was sent is lost, and no event is found by its time"
        findings.append(warning("topic", what, alter("message.timestamp.type=CreateTime")))
    if (most := int(config.get("max.message.bytes", RECORD_BYTES))) < RECORD_BYTES:
        what = (
            f"{name} has max.message.bytes={most}: larger records, up to {RECORD_BYTES}, are refused, their events lost"
        )
        findings.append(warning("topic", what, alter(f"max.message.bytes={RECORD_BYTES}")))
    return findings


def _of_definitions(name: str, config: dict[str, str], alter: Callable[[str], str]) -> list[Finding]:
    policy = config.get("cleanup.policy", "delete")
    if policy == "compact":
        return []
    what = f"{name} has cleanup.policy={policy}: definitions that are not sent again are deleted in time"
    return [warning("topic", what, alter("cleanup.policy=compact"))]


def _kept(config: dict[str, str]) -> str:
    if config.get("cleanup.policy") == "compact":
        return "compacted"
    most = int(config.get("retention.bytes", "-1"))
    return f"kept {'without end' if most < 0 else f'up to {size(most)} a partition'}, by bytes"


def _room(settings: Settings, bounds: dict[int, tuple[int, int]], lasts: dict[int, int]) -> list[Finding]:
    """Partitions of which so much is not stored yet that retention.bytes may delete it first; sizes are estimates."""
    with closing(_admin(settings.bootstrap_servers)) as admin:
        described = admin.describe_configs([ConfigResource("TOPIC", settings.topic)], config_filter="all")
        told = described["topic"][settings.topic].get("retention.bytes")
        most = int(_value(told)) if told else -1
        sizes = _sizes(admin, settings.topic) if most > 0 else {}
    findings = []
    for number, taken in sizes.items():
        begin, end = bounds.get(number, (0, 0))
        unstored = taken * (end - 1 - max(lasts.get(number, -1), begin - 1)) / max(1, end - begin)
        if unstored > most * UNSTORED_SHARE:
            what = (
                f"about {size(unstored)} of partition {number} of {settings.topic} are not stored yet, and the topic keeps "
                f"{size(most)} of each"
            )
            cure = f"run the job (`sagascope analyze`), or raise it: {_alter(settings, settings.topic, 'retention.bytes=-1')}"
            findings.append(warning("topic", what, cure))
    return findings


def _sizes(admin: KafkaAdminClient, topic: str) -> dict[int, int]:
    """Bytes of each partition."""
    return {
        partition["partition_index"]: partition["partition_size"]
        for node in admin.describe_log_dirs([topic])
        for folder in node["log_dirs"]
        for one in folder["topics"]
        for partition in one["partitions"]
    }


def _progress(settings: Settings) -> Progress:
    if not settings.catalog_file.exists():
        return NOTHING
    with reading(settings) as catalog:
        return read_progress(settings, catalog)


def _admin(servers: str) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=REACH_MS, request_timeout_ms=REACH_MS)


def _value(told: Any) -> str:
    """Of a configuration's entry, as kafka-python gives it."""
    return str(told["value"] if isinstance(told, dict) else told)


def _alter(settings: Settings, topic: str, change: str) -> str:
    return f"`python -m kafka.admin -b {settings.bootstrap_servers} configs alter -r topic -n {topic} -c {change}`"
