"""The Grafana dashboard asks for nothing that is not there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from pipelines.dashboard import panels
from pipelines.dashboard.grafana import dashboard

if TYPE_CHECKING:
    from tests.pipelines.dashboard.conftest import Served

METRIC = re.compile(r"\bsagascope_\w+")
SELECTOR = re.compile(r"(?P<metric>sagascope_\w+)\{(?P<labels>[^}]*(?:\$\{[^}]*\}[^}]*)*)\}")


def test_every_query_uses_metrics_and_labels_that_exist(served: Served) -> None:
    """By name, as `/metrics` has them; so do the variables."""
    there: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(served.get("/metrics").text):
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    made = dashboard()
    asked = [target["expr"] for panel in made["panels"] for target in panel["targets"]]
    assert len(asked) >= 14
    for expression in asked:
        assert set(METRIC.findall(expression)) <= there.keys(), expression
        for selector in SELECTOR.finditer(expression):
            labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", selector["labels"]))
            assert labels <= there[selector["metric"]], expression
    [saga] = [variable for variable in made["templating"]["list"] if variable["name"] == "saga"]
    assert set(METRIC.findall(saga["query"]["query"])) <= there.keys()


def test_queries_find_what_the_frame_has(served: Served) -> None:
    """The value that a tile shows is that of the metric which its query names."""
    frame = served.get("/api/v1/live").json()
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(served.get("/metrics").text)
        for sample in family.samples
    }
    window = next(one for one in frame["windows"] if one["name"] == "1h")
    labels = frozenset({"window": "1h", "saga": ""}.items())
    assert samples["sagascope_live_saga_failure_ratio", labels] == window["all_sagas"]["failure_rate"]


def test_panels_are_those_of_the_page() -> None:
    """Each once, by its title, none above another; as JSON that Grafana imports."""
    made: Any = msgspec.json.decode(msgspec.json.encode(dashboard()))
    ours: list[Any] = [*panels.TILES, panels.ENDED, panels.DURATIONS, panels.SLOWEST, panels.MOST_FAILING]
    assert [panel["title"] for panel in made["panels"]] == [panel.title for panel in ours]
    covered: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered, panel["title"]
        covered |= cells
        assert panel["targets"], panel["title"]
