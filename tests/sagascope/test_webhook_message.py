"""What a webhook says, and its signature, judged by the library of Standard Webhooks."""

from __future__ import annotations

import base64
import json
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from sagascope.errors import PermanentError
from sagascope.events import EventType, decode, encode
from sagascope.webhook_message import PAYLOAD_LIMIT, body_of, headers_of, signing_key
from tests.sagascope.conftest import make_event

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
FAILED = make_event(
    event_type=EventType.SAGA_FAILED,
    total_duration_ms=1_234,
    error_type="CardError",
    error_message="refused",
    context_keys=("amount", "order_id"),
    attributes={"tenant": "acme"},
)


def test_the_body_is_the_specified_one_and_the_event() -> None:
    """`event`, `saga_id` and `duration_ms` are there, with all the fields of the event's own JSON."""
    content = json.loads(body_of(FAILED))
    assert content.pop("event") == "saga_failed"
    assert content.pop("duration_ms") == 1_234
    assert content == json.loads(encode(FAILED))


@pytest.mark.parametrize(
    ("fields", "duration_ms"),
    [
        ({"event_type": EventType.SAGA_STARTED}, None),
        ({"event_type": EventType.STEP_COMPLETED, "step_name": "pay", "duration_ms": 0}, 0),
        ({"event_type": EventType.SAGA_COMPLETED, "total_duration_ms": 7}, 7),
    ],
)
def test_the_duration_is_of_what_ended(fields: dict[str, object], duration_ms: int | None) -> None:
    """The key is always there: null where nothing ended."""
    assert json.loads(body_of(make_event(**fields)))["duration_ms"] == duration_ms


def test_a_receiver_can_decode_the_event() -> None:
    """`sagascope.decode` reads a body; what is of the webhook alone is ignored."""
    event = make_event(event_type=EventType.STEP_FAILED, step_name="pay", error_type="E", error_message="no")
    assert decode(body_of(event)) == event


@pytest.mark.parametrize(
    ("fields", "cut"),
    [
        ({"error_type": "E", "error_message": "\x01" * 8_192}, ["error_message"]),
        ({"error_type": "E", "error_message": "ü" * 4_096, "attributes": {"k": "v" * 15_000}}, ["error_message"]),
        (
            {"error_type": "E", "error_message": "🎈" * 2_000, "attributes": {"k": "v" * 1_000_000}},
            ["error_message", "attributes"],
        ),
        ({"context_keys": tuple(f"key_{n}" for n in range(100_000))}, ["context_keys"]),
        ({"context_keys": ("k",), "attributes": {"k": "v" * 20_000}}, ["attributes"]),
    ],
)
def test_a_large_body_is_cut_and_says_so(fields: dict[str, object], cut: list[str]) -> None:
    """A body stays below 20 KB; what is cut or left out is listed, and who, what and when is never cut."""
    event = make_event(**fields)
    body = body_of(event)
    assert len(body) < PAYLOAD_LIMIT
    content = json.loads(body)
    assert content["cut"] == cut
    assert ("attributes" in content) == ("attributes" in fields and "attributes" not in cut)
    assert (decode(body).event_id, decode(body).saga_id) == (event.event_id, event.saga_id)
    if "error_message" in cut:
        assert content["error_message"].endswith("[cut by sagascope]")


def test_an_event_too_large_without_what_may_be_cut_is_permanent() -> None:
    """A name of a megabyte makes no webhook, now or later."""
    with pytest.raises(PermanentError, match=r"1,000,[0-9]{3} bytes as a webhook, .*; allowed: 20,000"):
        body_of(make_event(saga_id="x" * 1_000_000))


@pytest.mark.parametrize("saga_id", ["a.b/c?d#e", "ö\n\t\0", "\ud800", '"}', "名前", "\u202e"])
def test_odd_names_survive(saga_id: str) -> None:
    """Any text is a saga_id; only a lone surrogate, which is no text, becomes a question mark."""
    assert json.loads(body_of(make_event(saga_id=saga_id)))["saga_id"] == saga_id.replace("\ud800", "?")


def test_the_library_verifies_each_secret_of_a_rotation() -> None:
    """With two secrets a receiver that knows either one accepts, and nobody else."""
    body, now = body_of(FAILED), int(time.time())
    headers = headers_of(FAILED, body, now, [signing_key("an old, plain one"), signing_key(SECRET)])
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    assert Webhook(b"an old, plain one").verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(b"another").verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers | {"webhook-id": "another"})
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers | {"webhook-timestamp": str(now + 1)})


def test_without_a_secret_nothing_is_signed() -> None:
    """A signature with no key would be worth nothing."""
    assert "webhook-signature" not in headers_of(FAILED, b"{}", 0, [])


@pytest.mark.parametrize("event_id", ["a.b", "a b", "a\r\nX: y", "ä", "\ud800"])
def test_an_id_that_would_break_the_signature_is_permanent(event_id: str) -> None:
    """What is signed is divided by dots, and an id is a header: one with a dot or a line break is never sent."""
    with pytest.raises(PermanentError, match=r"can't be a webhook-id; allowed: printable ASCII without '\.'"):
        headers_of(make_event(event_id=event_id), b"{}", 0, [KEY])


@pytest.mark.parametrize("secret", ["whsec_", "whsec_c2hvcnQ=", "whsec_not base64", "whsec_" + "A" * 200, ""])
def test_a_secret_that_is_none_is_refused_unseen(secret: str) -> None:
    """A mistyped secret is an error at once, and the error does not show it."""
    with pytest.raises(ValueError, match="secret") as told:
        signing_key(secret)
    assert secret in ("", "whsec_") or secret not in str(told.value)


@pytest.mark.parametrize("size", [24, 64])
def test_the_shortest_and_the_longest_key(size: int) -> None:
    """24 to 64 bytes, as the specification has it."""
    assert len(signing_key("whsec_" + base64.b64encode(bytes(size)).decode())) == size
