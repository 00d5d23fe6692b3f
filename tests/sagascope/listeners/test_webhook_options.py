"""What a WebhookListener is configured with: what the endpoint sees of it, what nobody sees, and what is refused."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sagascope import PermanentError, TransientError, WebhookListener
from tests.sagascope.listeners.webhooks import LOOPBACK, SECRET, ends, to, written

if TYPE_CHECKING:
    from tests.servers.webhook_receiver import Receiver


def test_what_arrives_is_verified_by_the_library(receiver: Receiver) -> None:
    """The receiver's own check accepts the signature over exactly what it received."""
    receiver.plan(secret=SECRET)
    written(to(receiver.port, signing_secrets=["the next one", SECRET]), ends(3))
    assert [received.verified for received in receiver.received] == [True] * 3
    receiver.plan(secret=SECRET)
    written(to(receiver.port, signing_secrets=["another"]), ends(1))
    assert [received.verified for received in receiver.received] == [False]


def test_the_headers_of_a_request(receiver: Receiver) -> None:
    """Path, query and headers are as configured, the id is the event's, and the time that of each try."""
    receiver.plan({"status": 503})
    times = [1_700_000_000.9, 1_700_000_007.1]
    url = f"http://127.0.0.1:{receiver.port}/a%20b/ö?token=x%2Fy&z"
    more = {"Authorization": "Bearer t"}
    event = ends(1)[0]

    async def main() -> None:
        async with WebhookListener(
            url, "s3cret", headers=more, allow_networks=LOOPBACK, clock=lambda: times[0]
        ) as listener:
            with pytest.raises(TransientError):
                await listener.write([event])
            times.pop(0)
            await listener.write([event])

    asyncio.run(main())
    first, second = receiver.received
    assert (first.path, first.query) == ("/a b/ö", "token=x%2Fy&z")
    assert first.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["authorization"] == "Bearer t"
    assert first.headers["x-webhook-secret"] == "s3cret"
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == event.event_id
    assert [each.headers["webhook-timestamp"] for each in (first, second)] == ["1700000000", "1700000007"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert first.body == second.body


@pytest.mark.parametrize(
    ("options", "sent", "signed"),
    [
        ({}, None, False),
        ({"secret": SECRET}, SECRET, True),
        ({"secret": SECRET, "send_secret": False}, None, True),
        ({"secret": "weak", "signing_secrets": [SECRET]}, "weak", True),
        ({"signing_secrets": [SECRET]}, None, True),
    ],
)
def test_who_sees_the_secret(receiver: Receiver, options: dict[str, Any], sent: str | None, signed: bool) -> None:  # noqa: FBT001
    """`secret` travels in clear unless told not to, `signing_secrets` never do; what signs is the latter, or else the former."""
    receiver.plan(secret=SECRET)
    written(to(receiver.port, **options), ends(1))
    (received,) = receiver.received
    assert received.headers.get("x-webhook-secret") == sent
    assert received.verified is signed
    if sent != SECRET:
        assert SECRET not in str(received)


def test_secrets_are_in_no_message_and_no_log(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Neither path nor query of the URL, nor a header's value, nor a secret shows, even with every logger at DEBUG."""
    caplog.set_level(logging.DEBUG)
    receiver.plan(*({"status": status} for status in (204, 404, 503, 302, 410)))
    shown: list[str] = []

    async def main() -> None:
        listener = WebhookListener(
            f"http://127.0.0.1:{receiver.port}/hunter2/path?token=hunter2",
            "hunter2-secret",
            signing_secrets=["hunter2-key"],
            headers={"Authorization": "Bearer hunter2"},
            allow_networks=LOOPBACK,
        )
        async with listener:
            await listener.write(ends(1))
            for kind in (PermanentError, TransientError, TransientError, PermanentError):
                with pytest.raises(kind) as told:
                    await listener.write(ends(1))
                shown.append(repr(told.value))
        shown.append(repr(listener))

    asyncio.run(main())
    assert [received.path for received in receiver.received] == ["/hunter2/path"] * 5
    assert caplog.records, "nothing was logged, so this showed nothing"
    assert not any("hunter2" in text for text in [*shown, caplog.text])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com/hunter2",
        "ftp://hooks.example.com/hunter2",
        "file:///hunter2",
        "http://",
        "http:///hunter2",
        "http://user:hunter2@hooks.example.com/",
        "http://hunter2@hooks.example.com/",
        "http://hooks.example.com:hunter2/",
        "http://hooks.example.com:99999/hunter2",
        "http://good.example\\@evil.example/hunter2",
        "http://hooks.example.com/hunter2 x",
        "http://hooks.example.com/hunter2\r\nX: y",
        "http://hooks.example.com/#hunter2",
        "http://[::1/hunter2",
    ],
)
def test_a_wrong_url_is_refused_unseen(url: str) -> None:
    """The constructor says what is wrong with a URL, without showing it: it may hold a secret."""
    with pytest.raises(ValueError, match=r"webhook_url: got one with .*; allowed: http:// or https://") as told:
        WebhookListener(url)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret": ""}, "empty string"),
        ({"secret": "hunter2\n"}, "X-Webhook-Secret is not printable ASCII"),
        ({"secret": "hünter2"}, "X-Webhook-Secret is not printable ASCII"),
        ({"signing_secrets": ["whsec_hunter2"]}, "base64 of 24 to 64 bytes"),
        ({"headers": {"Authorization": "hunter2\r\nX: y"}}, "Authorization is not printable ASCII"),
        ({"headers": {"a b": "hunter2"}}, "'a b' can't be set"),
        ({"headers": {"Content-Length": "0"}}, "'Content-Length' can't be set"),
        ({"headers": {"WEBHOOK-ID": "x"}}, "'WEBHOOK-ID' can't be set"),
        ({"headers": {"Host": "x"}}, "'Host' can't be set"),
        ({"event_types": ["saga_ended"]}, "'saga_ended' is not a valid EventType"),
        ({"timeout": 0}, "timeout: got 0; allowed"),
        ({"timeout": float("nan")}, "timeout: got nan; allowed"),
        ({"concurrency": 0}, "concurrency: got 0; allowed: 1 or more"),
        ({"allow_networks": ["10.0.0.1/8"]}, "allow_networks"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    """A mistake in the configuration is an error when the service starts, naming the option and no secret."""
    with pytest.raises(ValueError, match=message) as told:
        WebhookListener("https://hooks.example.com/", **options)
    assert "hunter2" not in str(told.value)
