"""Who is let in: anybody on this machine; from elsewhere who has the token, or whom a proxy has let through."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from pipelines.dashboard.answers import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_VARIABLE = "SAGASCOPE_DASHBOARD_TOKEN"  # noqa: S105 - its name
SHORTEST_TOKEN = 16
COOKIE = "sagascope_dashboard"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What probes ask for: says whether, never what."""
MAKE_ONE = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class AccessError(ValueError):
    """The dashboard would be open to the network; says how to close it. Never holds the token."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The rules, judged when they are made.

    Raises:
        AccessError: a host that others can reach, with neither a token nor a proxy; or a token that can be guessed.
    """

    host: str = "127.0.0.1"
    token: str = ""
    """Demanded where there is one, from this machine, too."""
    behind_proxy: bool = False
    """A proxy in front asks who it is: then nobody is asked here."""

    def __post_init__(self) -> None:
        if self.token and len(self.token) < SHORTEST_TOKEN:
            msg = (
                f"the dashboard's token has {len(self.token)} characters, at least {SHORTEST_TOKEN} are needed; this makes "
                f"one: {MAKE_ONE}"
            )
            raise AccessError(msg)
        if not (self.is_loopback or self.token or self.behind_proxy):
            msg = (
                f"--host {self.host} would show your sagas to everybody who reaches that address: set {TOKEN_VARIABLE} (this "
                f"makes one: {MAKE_ONE}), or pass --behind-proxy where a proxy in front asks who it is"
            )
            raise AccessError(msg)

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def cookie(self) -> str:
        """What a browser keeps in the token's place."""
        return hmac.new(self.token.encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


class Gate:
    """Lets requests through by the rules, and adds headers to every answer.

    On the loopback interface a request must name it, so that no name which an attacker's DNS turns into 127.0.0.1 reads
    anything. A WebSocket must come from a page of this server: browsers let every page open one.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None:
            if self._has_token_in_url(scope):
                await _answer(send_with_headers, 303, b"", self._with_cookie(scope))
                return
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1].error})
        else:
            status, problem = refusal
            extra = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            body = msgspec.json.encode(problem)
            await _answer(send_with_headers, status, body, [(b"content-type", b"application/json"), *extra])

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, Problem] | None:
        access, host = self._access, headers.get("host", "")
        if access.is_loopback and not access.behind_proxy and _name_of(host) not in LOOPBACK_NAMES:
            cure = "open it as http://127.0.0.1, or start it with --behind-proxy where a proxy passes its own name on"
            return 403, Problem(error="this dashboard does not answer by that name", value=host, cure=cure)
        origin = headers.get("origin", "")
        if scope["type"] == "websocket" and origin and urlsplit(origin).netloc.lower() != host.lower():
            return 403, Problem(
                error="a page of another site opened a WebSocket", value=origin, cure="open the dashboard"
            )
        if not access.token or scope["path"] in OPEN_PATHS or self._is_known(scope, headers):
            return None
        cure = f"send `Authorization: Bearer …`, or open the page once with ?token=…: the value of {TOKEN_VARIABLE}"
        return 401, Problem(error="this dashboard needs its token", value=None, cure=cure)

    def _is_known(self, scope: Scope, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._access.token):
            return True
        if _equal(_cookie_in(headers), self._access.cookie):
            return True
        return self._has_token_in_url(scope)

    def _has_token_in_url(self, scope: Scope) -> bool:
        """The URL of a page has the right token."""
        if not self._access.token or scope["type"] != "http" or b"token=" not in scope["query_string"]:
            return False
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        return _equal(given, self._access.token)

    def _with_cookie(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """To the same address, without the token, which else stays in histories and logs."""
        left = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != "token"]
        path = "/" + scope["path"].lstrip("/")  # //host would lead elsewhere
        target = path + (f"?{urlencode(left)}" if left else "")
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{COOKIE}={self._access.cookie}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000{secure}"
        return [(b"location", target.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _name_of(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie_in(headers: dict[str, str]) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _equal(given: str, right: str) -> bool:
    """In the same time wherever they differ."""
    return hmac.compare_digest(given.encode(), right.encode())
