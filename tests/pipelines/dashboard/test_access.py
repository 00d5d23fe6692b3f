"""Who is let in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from pipelines.dashboard.access import Access, AccessError
from tests.pipelines.dashboard.conftest import Served, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warehouse.settings import Settings

TOKEN = "a-token-that-is-long-enough"  # noqa: S105 - of this test


def test_beyond_this_machine_a_token_or_a_proxy_is_demanded() -> None:
    """Else it does not start, and says what to do; a short token is none, and is never said."""
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):  # noqa: S104
        with pytest.raises(AccessError, match=r"SAGASCOPE_DASHBOARD_TOKEN .*--behind-proxy"):
            Access(host=host)
        Access(host=host, token=TOKEN)
        Access(host=host, behind_proxy=True)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        Access(host=host)
    with pytest.raises(AccessError, match="has 5 characters, at least 16") as told:
        Access(token="short")  # noqa: S106
    assert "short" not in str(told.value)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "", "[", "169.254.1.1"]
)
def test_other_names_of_the_loopback_interface_are_refused(served: Served, host: str) -> None:
    """A page of an attacker whose name leads to 127.0.0.1 reads nothing."""
    got = served.get("/api/v1/live", headers={"Host": host})
    assert got.status_code in {400, 403}
    if got.status_code == 403:
        assert got.json()["value"] == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:8050"])
def test_names_of_this_machine_are_let_in(served: Served, host: str) -> None:
    """With any port, for it may be forwarded."""
    assert served.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_websocket_comes_from_a_page_of_this_server(served: Served) -> None:
    """Browsers let every page open one; from elsewhere it is refused before it is looked at."""
    address = served.address.replace("http", "ws") + "/anything"
    with pytest.raises(InvalidStatus) as refused, connect(address, origin=Origin("https://evil.example")):
        pass
    assert refused.value.response.status_code == 403


@pytest.fixture(scope="module")
def guarded(planted: Settings) -> Iterator[Served]:
    """Served with a token."""
    with serving(planted, Access(token=TOKEN)) as one:
        yield one


def test_the_token_is_demanded(guarded: Served) -> None:
    """As a bearer; of what probes ask for not. An error says how, never what."""
    refused = guarded.get("/api/v1/live")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "SAGASCOPE_DASHBOARD_TOKEN" in refused.json()["cure"]
    assert TOKEN not in refused.text
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", "Bearer ü"):
        assert guarded.get("/", headers={"Authorization": wrong.encode()}).status_code == 401
    assert guarded.get("/api/v1/live?token=wrong").status_code == 401
    assert guarded.get("/api/v1/live", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/readyz").status_code in {200, 503}


def test_a_browser_keeps_a_cookie_in_the_tokens_place(guarded: Served) -> None:
    """The address that it goes on with has no token; the cookie is none either, and scripts can't read it."""
    with httpx.Client(base_url=guarded.address) as browser:
        first = browser.get("/docs", params={"token": TOKEN, "a": "b c"})
        assert (first.status_code, first.headers["location"]) == (303, "/docs?a=b+c")
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert TOKEN not in cookie
        assert browser.get("/docs").status_code == 200
    elsewhere = httpx.get(f"{guarded.address}//evil.example/?token={TOKEN}")
    assert (elsewhere.status_code, elsewhere.headers["location"]) == (303, "/evil.example/")
    wrong = {"Cookie": "sagascope_dashboard=0123456789abcdef"}
    assert guarded.get("/docs", headers=wrong).status_code == 401


def test_behind_a_proxy_nobody_is_asked(planted: Settings) -> None:
    """Also by the proxy's own name."""
    with serving(planted, Access(behind_proxy=True)) as one:
        assert one.get("/healthz", headers={"Host": "sagas.example.org"}).status_code == 200
