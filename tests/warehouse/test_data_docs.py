"""The site that shows what was judged, read as a browser without a network would."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from tests.warehouse.planted import DAY, fill, put, tamper
from warehouse import quality
from warehouse.tables import EVENTS, SAGA_STATS, TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

HOSTILE = '<script>alert("1")</script> $HOME ${x} {{ x }} & co'


class Page(HTMLParser):
    """What a page says, what it links to, and what it would load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        text = path.read_text(encoding="utf-8")
        self.loads += re.findall(r"url\(|@import", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a":
            self.links.append(named.get("href") or "")
        elif tag in {"script", "link", "iframe"} or "src" in named:
            self.loads.append(f"{tag} {named.get('src')}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All that it says, with single spaces."""
        return " ".join(" ".join(self.words).split())


def test_the_site_is_whole_and_needs_no_network(lake: Settings, tmp_path: Path) -> None:
    """Each table and day has a page that the first one leads to; no page loads or runs anything; every link leads somewhere."""
    fill(lake)
    tamper(lake, SAGA_STATS, put(0, started=5))
    folder = tmp_path / "docs"
    quality.inspect(lake, TABLES, [DAY, DAY + timedelta(days=1)], folder)
    first = Page(folder / "index.html")
    days = [link for link in first.links if link.startswith("validations/")]
    assert len(set(days)) == len(TABLES) * 2
    assert "events 2026-11-20 12 22 0 0 passed" in first.text
    assert "events 2026-11-21 0 22 0 0 no rows" in first.text
    assert re.search(r"saga_stats 2026-11-20 3 \d+ 1 0 error", first.text)
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 1 + len(TABLES) * 3
    for path in pages:
        page = Page(path)
        assert page.loads == [], path
        lost = [link for link in page.links if not link.startswith("#") and not (path.parent / link).is_file()]
        assert lost == [], path


def test_what_breaks_a_rule_is_shown_as_text(lake: Settings, tmp_path: Path) -> None:
    """A value of a row stands in its day's page as it is, and is no part of the page's own code; the suite's has none."""
    fill(lake)
    tamper(lake, EVENTS, put(1, event_type=HOSTILE))
    folder = tmp_path / "docs"
    quality.inspect(lake, [EVENTS], [DAY], folder)
    [day] = (folder / "validations" / "events" / str(DAY)).rglob("*.html")
    assert f"event_type is {HOSTILE}" in Page(day).text
    assert Page(day).loads == []
    assert HOSTILE not in Page(folder / "expectations" / "events.html").text


def test_a_new_site_takes_the_place_of_the_old_one(lake: Settings, tmp_path: Path) -> None:
    """What an earlier run wrote is gone, and no half of a site is left beside it."""
    fill(lake)
    folder = tmp_path / "docs"
    quality.inspect(lake, [EVENTS], [DAY - timedelta(days=1)], folder)
    quality.inspect(lake, [EVENTS], [DAY], folder)
    assert [path.name for path in (folder / "validations" / "events").iterdir()] == [str(DAY)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("docs")] == ["docs"]
