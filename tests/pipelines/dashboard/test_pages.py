"""The pages in a real browser, from a real server, over real tables with planted events."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from pipelines.ports import free_port
from tests.servers.server import require_debian
from tests.warehouse.live_oracle import SCRIPT, story
from tests.warehouse.planted import append, event, events_of
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS, SAGA_DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

ROOT = Path(__file__).parents[3]
PAGES = ("/", "/history", "/flow", "/system", "/sagas/s4")
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 20_000
IS_UP = re.compile("live|stale")
STEPS = [
    {"step_name": "pay", "compensable": True},
    {"step_name": "ship", "depends_on": ["pay"], "pivot": True, "timeout_seconds": 2.5},
]


class Site:
    """`sagascope dashboard` as a process of its own, at one port."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.port = settings, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        command = [sys.executable, "-m", "pipelines", "dashboard", "--port", str(self.port)]
        environment = os.environ | {"SAGASCOPE_HOME": self.settings.home, "SAGASCOPE_TOPIC": self.settings.topic}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.address}/healthz", timeout=5)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        msg = f"nothing answers at {self.address}"
        raise AssertionError(msg)

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self._process:
            self._process.terminate()
            self._process.wait(10)

    def frame(self) -> Any:
        """The newest one."""
        return httpx.get(f"{self.address}/api/v1/live", timeout=10).json()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Served, over sagas that ended within the last minutes, and more than a page of them that run."""
    settings = Settings(home=str(tmp_path_factory.mktemp("pages") / "home"), topic="t")
    open_catalog(settings)
    now = datetime.now(UTC).replace(microsecond=0)
    rows = events_of(0, now - timedelta(minutes=2)) + events_of(2, now - timedelta(minutes=1))
    rows += story(4, now - timedelta(seconds=20), ["pay", "ship!", "-pay"], "saga_rolled_back", name=SCRIPT)
    rows += story(5, now - timedelta(seconds=20), ["pay"], None, name=SCRIPT)
    for run in range(100, 160):
        rows += story(run, now - timedelta(minutes=run % 40 + 2), ["pay"], None)
    append(settings, EVENTS, [row | {"definition_id": "d"} for row in rows])
    steps = msgspec.json.encode(STEPS).decode()
    define = {"definition_id": "d", "saga_name": "order", "steps": steps, "first_seen": now}
    append(settings, SAGA_DEFINITIONS, [define])
    one = Site(settings)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        one = driver.chromium.launch(executable_path=require_debian("chromium", "chromium"), args=arguments)
        yield one
        one.close()


@contextmanager
def opened(browser: Browser, url: str, *, forgiven: str = "$^", **options: Any) -> Iterator[Page]:
    """A page in a browser without a past. Nothing may be asked of another host, no error be logged but those forgiven."""
    context = browser.new_context(**({"viewport": DESKTOP, "timezone_id": "Europe/Berlin"} | options))
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    own = ("http://" + url.split("/")[2], "data:", "blob:")

    def look_at_request(request: Request) -> None:
        if not request.url.startswith(own):
            wrong.append(request.url)

    def look_at_console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            wrong.append(message.text)

    def look_at_dialog(dialog: Dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", look_at_request)
    page.on("console", look_at_console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", look_at_dialog)
    page.goto(url)
    yield page
    context.close()
    assert [line for line in wrong if not re.search(forgiven, line)] == []


def await_numbers(page: Page) -> None:
    """The stream is open and has brought a frame; nothing is being asked for."""
    expect(page.locator(".pill")).to_have_attribute("data-state", IS_UP, timeout=PATIENCE_MS)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=PATIENCE_MS)


def shown(page: Page, panel: str) -> dict[str, float]:
    """The numbers of a tile that stand in the DOM, before they are written."""
    parts = page.locator(f"[data-panel={panel}] [data-field]").all()
    return {str(part.get_attribute("data-field")): float(part.get_attribute("data-value") or "nan") for part in parts}


def test_numbers_are_those_of_the_frame_and_of_the_history(site: Site, browser: Browser) -> None:
    """What stands on the Live page is what the API says, and what DuckDB finds in the same span."""
    with opened(browser, f"{site.address}/?window=1h") as page:
        await_numbers(page)
        frame = site.frame()
        window = frame["windows"][-1]
        assert shown(page, "active") == {"active": frame["active"]}
        assert shown(page, "failure_rate") == {"failure_rate": window["all_sagas"]["failure_rate"]}
        percentiles = {name: window["all_steps"][name] for name in ("p50_ms", "p95_ms", "p99_ms")}
        assert shown(page, "step_durations") == percentiles
        rate = shown(page, "started")["started_per_minute"]
        assert rate == pytest.approx(window["all_sagas"]["started_per_minute"], rel=0.02)
        with history.open(site.settings, datetime.fromisoformat(window["since"])) as tables:
            [(started, failed, ended)] = tables.sql("""
                SELECT count_if(event_type = 'saga_started'), count_if(event_type IN ('saga_failed', 'saga_rolled_back')),
                    count_if(event_type IN ('saga_failed', 'saga_rolled_back', 'saga_completed')) FROM events
            """).fetchall()
            [(running,)] = tables.sql("SELECT count(*) FROM open_runs").fetchall()
        assert shown(page, "active") == {"active": running}
        assert shown(page, "failure_rate")["failure_rate"] == pytest.approx(failed / ended, abs=1e-5)
        assert rate * window["elapsed_seconds"] / 60 == pytest.approx(started, rel=0.02)


def test_a_new_commit_is_seen(site: Site, browser: Browser) -> None:
    """Without a reload."""
    with opened(browser, site.address) as page:
        await_numbers(page)
        before = shown(page, "active")["active"]
        append(site.settings, EVENTS, story(900, datetime.now(UTC) - timedelta(seconds=2), ["pay"], None))
        figure = page.locator("[data-panel=active] [data-field]")
        expect(figure).to_have_attribute("data-value", f"{before + 1:.0f}", timeout=PATIENCE_MS)


def test_the_address_says_what_is_shown(site: Site, browser: Browser) -> None:
    """Window, kind of saga, order and page: a reload shows the same, the way back what was before."""
    with opened(browser, site.address) as page:
        await_numbers(page)
        page.get_by_label("15m").check()
        page.get_by_label("Show one kind of saga").select_option("order")
        page.get_by_role("button", name="Silent for").click()
        expect(page).to_have_url(f"{site.address}/?window=15m&saga=order&sort=silent")
        page.get_by_role("button", name="Silent for").click()
        page.get_by_role("button", name="Next page").click()
        expect(page).to_have_url(re.compile("order=asc.*page=2"))
        expect(page.locator("th[aria-sort=ascending]")).to_have_text("Silent for")
        assert set(page.locator("td.kind").all_inner_texts()) == {"order"}
        page.reload()
        await_numbers(page)
        expect(page.get_by_label("15m")).to_be_checked()
        expect(page.get_by_label("Show one kind of saga")).to_have_value("order")
        expect(page.locator("th[aria-sort=ascending]")).to_have_text("Silent for")
        for _ in range(4):
            page.go_back()
        expect(page.get_by_label("15m")).to_be_checked()
        expect(page.get_by_label("Show one kind of saga")).to_have_value("")
        page.go_back()
        expect(page.get_by_label("5m", exact=True)).to_be_checked()


def test_running_sagas_are_found_and_open_their_page(site: Site, browser: Browser) -> None:
    """As many as the API says; a search leaves those that match; a row leads to the saga."""
    with opened(browser, site.address) as page:
        await_numbers(page)
        expect(page.locator("tr[data-run]")).to_have_count(50)
        matching = page.locator("[data-field=matching]").get_attribute("data-value")
        assert int(matching or 0) == site.frame()["active"]
        page.keyboard.press("/")
        page.keyboard.type("s123")
        expect(page.locator("tr[data-run]")).to_have_count(1)
        expect(page).to_have_url(f"{site.address}/?q=s123")
        page.locator("tr[data-run] td.step").click()
        expect(page).to_have_url(f"{site.address}/sagas/s123")
        expect(page.get_by_role("heading", level=1)).to_have_text("s123")
        expect(page.locator("[data-field=outcome]")).to_contain_text("running")


def test_a_saga_is_drawn_as_its_events_say(site: Site, browser: Browser) -> None:
    """A bar for each execution, a row for each event; an id that nobody has is said to be none."""
    with opened(browser, f"{site.address}/sagas/s4") as page:
        await_numbers(page)
        bars = page.locator(".gantt ol li").all()
        drawn = [(bar.get_attribute("data-step"), bar.get_attribute("data-phase")) for bar in bars]
        assert drawn == [("pay", "step"), ("ship", "step"), ("pay", "compensation")]
        expect(page.locator("[data-field=outcome]")).to_contain_text("rolled back")
        with history.open(site.settings) as tables:
            [(events,)] = tables.sql("SELECT count(*) FROM events WHERE saga_id = 's4'").fetchall()
        expect(page.locator(".events tbody tr")).to_have_count(events)
    with opened(browser, f"{site.address}/sagas/nobody", forgiven="404") as page:
        expect(page.get_by_text("No such saga")).to_be_visible()


def test_a_huge_saga_stays_usable(site: Site, browser: Browser) -> None:
    """500 steps, names of any script, a megabyte of error text: all steps are drawn, of the text the beginning until asked."""
    begin = datetime.now(UTC) - timedelta(minutes=3)
    rows = [event(990, 0, "saga_started", begin, saga_name="注文")]
    for n in range(1, 1001, 2):
        at, step = begin + timedelta(milliseconds=n * 10), f"шаг {n} الخطوة"
        rows.append(event(990, n, "step_started", at, saga_name="注文", step_name=step))
        kind = "step_failed" if n == 999 else "step_completed"
        rows.append(event(990, n + 1, kind, at, saga_name="注文", step_name=step, duration_ms=10))
    error = {"error_type": "E", "error_message": "x" * 1_000_000}
    rows[-1] |= error
    rows.append(event(990, 1001, "saga_failed", begin + timedelta(seconds=10), saga_name="注文", **error))
    append(site.settings, EVENTS, rows)
    with opened(browser, f"{site.address}/sagas/s990") as page:
        await_numbers(page)
        expect(page.locator(".gantt ol li")).to_have_count(500)
        assert len(page.locator("#main").inner_text()) < 100_000
        page.get_by_role("button", name="show all 1,000,003 characters").click()
        assert len(page.locator(".error pre").inner_text()) == 1_000_003
        page.get_by_role("link", name="Live", exact=True).click()
        await_numbers(page)


@pytest.mark.parametrize("path", ["/", "/history?range=24h", f"/flow?saga={quote(SCRIPT)}", "/sagas/s4"])
def test_a_name_is_never_markup(site: Site, browser: Browser, path: str) -> None:
    """A saga that is named like a script is shown by its name, on every page that has it."""
    with opened(browser, site.address + path) as page:
        await_numbers(page)
        expect(page.locator("#main").get_by_text(SCRIPT).locator("visible=true").first).to_be_visible()
        assert page.locator("#main script").count() == 0


def test_it_reconnects_by_itself(site: Site, browser: Browser) -> None:
    """While the server is gone the page says so and keeps its numbers; once it is there again, they go on."""
    with opened(browser, f"{site.address}/?window=1h", forgiven="ERR_|WebSocket|503") as page:
        await_numbers(page)
        active = shown(page, "active")
        site.stop()
        expect(page.locator(".pill")).to_have_attribute("data-state", "disconnected", timeout=PATIENCE_MS)
        expect(page.locator(".pill")).to_contain_text(re.compile(r"trying again in \d s"))
        expect(page.locator(".notice")).to_contain_text("does not answer")
        assert shown(page, "active") == active
        site.start()
        await_numbers(page)
        expect(page).to_have_url(f"{site.address}/?window=1h")
        assert shown(page, "active") == active


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_nothing_keeps_anybody_out(site: Site, browser: Browser, path: str, scheme: str) -> None:
    """Axe finds no fault, at the width of a desktop and of a phone; no page is wider than the phone."""
    axe = Axe()
    for size in (DESKTOP, PHONE):
        with opened(browser, site.address + path, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
            await_numbers(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            kinds = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
            found = axe.run(page, options={"runOnly": kinds}).response["violations"]
            assert [(fault["id"], [node["html"][:200] for node in fault["nodes"][:4]]) for fault in found] == []


def test_the_keyboard_reaches_all_controls(site: Site, browser: Browser) -> None:
    """By Tab, each with a focus that is seen; `?` lists the shortcuts."""
    with opened(browser, site.address) as page:
        await_numbers(page)
        reached = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            name, outline = page.evaluate("""() => {
                const focused = document.activeElement;
                const seen = focused.matches("[type=radio]") ? focused.nextSibling : focused;
                return [focused.getAttribute("aria-label") ?? focused.textContent.trim(), getComputedStyle(seen).outlineStyle];
            }""")
            assert outline != "none", name
            reached.add(name)
        assert {"Skip to content", "Live", "System", "Find a saga by its id", "Show one kind of saga"} <= reached
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_contain_text("find a saga")


def test_where_there_are_no_tables_it_says_what_to_do(tmp_path: Path, browser: Browser) -> None:
    """And shows them once they are there."""
    site = Site(Settings(home=str(tmp_path / "home"), topic="t"))
    site.start()
    try:
        with opened(browser, site.address, forgiven="503") as page:
            expect(page.locator(".notice")).to_contain_text("make demo", timeout=PATIENCE_MS)
            open_catalog(site.settings)
            append(site.settings, EVENTS, events_of(0, datetime.now(UTC) - timedelta(seconds=30)))
            expect(page.locator("[data-panel=started] b")).not_to_have_text("0", timeout=PATIENCE_MS)
    finally:
        site.stop()
