"""Error messages: neither a value of the context nor a credential leaves the service."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from datetime import datetime
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagascope import FanOutSaga, redact, saga_scope
from sagascope.redaction import WITHHELD
from tests.sagascope.conftest import MemoryListener, fails

SECRET = "c4n4ry-5ecret"  # noqa: S105 - planted


@dataclasses.dataclass
class Card:
    """A value that a step returned."""

    holder: str
    number: int


class Color(Enum):
    """A value with a name."""

    RED = "deep-red"


class Slotted:
    """A value without a __dict__."""

    __slots__ = ("word",)

    def __init__(self, word: str) -> None:
        self.word = word


@pytest.mark.parametrize(
    ("message", "private", "says"),
    [
        ("no customer Ada Lovelace", {"name": "Ada Lovelace"}, "no customer [redacted]"),
        ("no 'Ada\\nLovelace'", {"name": "Ada\nLovelace"}, "no '[redacted]'"),
        ('{"name": "\\u00d6rs"}', {"name": "Örs"}, '{"name": "[redacted]"}'),
        ("amount 1234.50 refused", {"deep": [{"amount": Decimal("1234.50")}]}, "amount [redacted] refused"),
        ("order 4711 is gone", {"order": 4711}, "order [redacted] is gone"),
        ("category of cat", {"pet": "cat"}, "category of [redacted]"),
        ("id 12345678-1234-5678-1234-567812345678", UUID(int=0x12345678123456781234567812345678), "id [redacted]"),
        ("of Ada: 98765432", Card("Ada", 98765432), "of [redacted]: [redacted]"),
        ("a slotted word", Slotted("slotted"), "a [redacted] word"),
        ("bytes-value here", {"raw": b"bytes-value"}, "[redacted] here"),
        ("longer-secret and secret", ["secret", "longer-secret"], "[redacted] and [redacted]"),
        ("pin -1234, p@$$!", {"a": "-1234", "b": "p@$$!"}, "pin [redacted], [redacted]"),
        ("KeyError: 'ada@example.org'", {"by": {"ada@example.org": 1, "amount": 2}}, "KeyError: '[redacted]'"),
        ("amount is unknown", {"deep": {"amount": 1}}, "amount is unknown"),
        ("queue of queued-value", {"q": deque(["queued-value"])}, "queue of [redacted]"),
        ("proxied", {"p": MappingProxyType({"k": "proxied"})}, "[redacted]"),
        ("at 2026-11-25T10:00:00", {"t": datetime(2026, 11, 25, 10)}, "at [redacted]"),  # noqa: DTZ001 - as a service may
        ("hex 00000000000000000000000000000001", {"u": UUID(int=1)}, "hex [redacted]"),
        ("GET /q?name=Ada%20L%C3%B6w", {"n": "Ada Löw"}, "GET /q?name=[redacted]"),
        ("ADA LOVELACE is unknown", {"n": "Ada Lovelace"}, "[redacted] is unknown"),
        ("bytes b'\\xff\\xfe-raw'", {"b": b"\xff\xfe-raw"}, "bytes b'[redacted]'"),
        ("array value-7", {"a": np.array(["value-7"])}, "array [redacted]"),
        ("color deep-red", {"c": Color.RED}, "color [redacted]"),
        ("it is ok, no 7", {"a": "ok", "n": 7, "t": True, "none": None}, "it is ok, no 7"),
    ],
)
def test_values_are_taken_out_as_messages_quote_them(message: str, private: object, says: str) -> None:
    """Plain, in repr and in JSON, in containers and objects, the longest first; very short ones stay."""
    assert redact(message, [private]) == says


@pytest.mark.parametrize(
    "message",
    [
        f"cannot reach redis://app:{SECRET}@cache:6379/0",
        f"Authorization: Bearer {SECRET}",
        f"headers were {{'Authorization': 'Basic {SECRET}', 'Accept': '*/*'}}",
        f"X-Webhook-Secret={SECRET}",
        f'{{"password": "{SECRET}", "user": "ada"}}',
        f"db_password: {SECRET}; retry",
        f"GET /v1?api_key={SECRET}&page=2",
        f"used bearer {SECRET}",
        f"client_secret => '{SECRET}'",
        f"Cookie: {SECRET}",
        f"postgres://app:p/{SECRET}@db/orders",
        f"https://u:p@{SECRET}@host/x",
        f"Authorization: Token {SECRET}",
        f"Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={SECRET}",
        f"Cookie: a=1; session={SECRET}",
        f"{{'Cookie': 'a=1; sid={SECRET}', 'Accept': '*/*'}}",
        f'{{"password": "a\\"{SECRET}"}}',
        "-----BEGIN RSA PRIVATE KEY-----\nc4n4ry-5ecret\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_credentials_are_taken_out(message: str) -> None:
    """What looks like one, whatever it comes from, and no more than it."""
    said = redact(message)
    assert SECRET not in said
    assert "[redacted]" in said


def test_what_is_no_credential_stays() -> None:
    """An error that names an order, a count, a time or a shipping pin-board is as clear as it was."""
    for message in (
        "order 4711 not found after 3 of 5 tries in 12.5 s at 2026-11-25T03:00:00Z",
        "shipping to pinboard: monkey keyboard tokenizer",
        "http://host:9200/_bulk answered 503",
        "1234 5678 9012 3456 fails the checksum",
    ):
        assert redact(message) == message
    assert redact("card 4111 1111 1111 1111 refused") == "card [redacted] refused"
    assert redact("refused: 4111-1111-1111-1111.") == "refused: [redacted]."


@pytest.mark.parametrize(
    "token", ["ghp_" + "a1" * 18, "AKIA" + "ABCDEFGH12345678", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"]
)
def test_tokens_are_known_by_their_shape(token: str) -> None:
    """Also where nothing before them says what they are."""
    assert redact(f"used {token} in vain") == "used [redacted] in vain"


def test_a_long_message_costs_no_more_than_a_short_one() -> None:
    """Only what an event may hold is looked at; no pattern goes over it twice."""
    began = time.process_time()
    for part in (
        "ab",
        "x ",
        "eyJaaaaaaaa-",
        "password",
        "://",
        "://a:",
        'password="',
        "1 ",
        "bearer ",
        "cookie=",
        "-----BEGIN ",
    ):
        said = redact(part * (1_000_000 // len(part)))
        assert len(said) < 10_000
        assert said.endswith("[cut by sagascope]")
    assert time.process_time() - began < 5, "each of them takes milliseconds"


def test_the_beginning_of_a_value_is_not_left_where_a_message_is_cut() -> None:
    """A value across the cut goes with it."""
    for length in range(8 * 1024 - 20, 8 * 1024 + 5):
        said = redact("x" * length + SECRET + " " + SECRET, [{"a": SECRET}])
        assert SECRET[:2] not in said


def test_a_value_longer_than_a_message_is_not_quoted_either() -> None:
    """Of a document in the context a message may quote all, or the beginning."""
    document = "once upon a time " * 1_000
    for quoted in (document, document[:2_000]):
        assert redact(f"can't parse {quoted}", [{"document": document}]).startswith("can't parse [redacted]")
        assert "once upon" not in redact(f"can't parse {quoted}", [{"document": document}])


def test_too_many_values_or_too_deep_ones_withhold_the_message() -> None:
    """What can't be searched for is not said: the filter fails closed."""
    deep: object = SECRET
    for _ in range(50):
        deep = [deep]
    for private in ([{"card": SECRET}, list(range(60_000))], [deep]):
        assert redact(f"card of {SECRET}", private) == WITHHELD


@given(st.text(st.characters(categories=["L", "N"]), min_size=3, max_size=30), st.text(max_size=20))
def test_no_word_of_the_context_is_ever_quoted(value: str, around: str) -> None:
    """In any text, and in any script."""
    said = redact(f"{around} {value} {around}", [{"key": value}])
    assert value not in said.replace("[redacted]", "").replace(around, "") or value in around


class LeakySaga(FanOutSaga):
    """Its steps put what they know into errors."""

    saga_name = "leaky"


def test_no_event_quotes_the_context_or_a_result() -> None:
    """Whatever a step or a compensation raises: values of the context, of results and of what steps added are taken out."""
    memory = MemoryListener()

    async def pay(ctx: dict[str, Any]) -> dict[str, Any]:
        ctx["token"] = SECRET + "-added"
        return {"receipt": SECRET + "-result"}

    saga = LeakySaga("leaky", listeners=[memory])
    undo = fails(ValueError(f"undo of {SECRET}-added failed"))
    saga.add_step("pay", pay, undo)
    saga.add_step(
        "ship", fails(ValueError(f"{SECRET}-context with {SECRET}-result to {SECRET}-added")), depends_on={"pay"}
    )
    with pytest.raises(ValueError, match="context with"):
        asyncio.run(saga.run({"address": SECRET + "-context"}, "o-1"))
    messages = [event.error_message for event in memory.events if event.error_message]
    assert messages[:2] == ["[redacted] with [redacted] to [redacted]", "undo of [redacted] failed"]
    assert not any(SECRET in message for message in messages)


def test_what_the_allow_list_names_may_be_said() -> None:
    """The saga's id and the attributes leave anyway: a message may name them."""
    memory = MemoryListener()

    async def main() -> None:
        async with saga_scope("o-4711", "order", listeners=[memory], attribute_keys=["tenant"]) as saga:
            await saga.started({"saga_id": "o-4711", "tenant": "acme", "card": SECRET})
            await saga.step_started("pay")
            await saga.step_failed("pay", ValueError(f"o-4711 of acme: {SECRET}"))

    asyncio.run(main())
    assert memory.events[-1].error_message == "o-4711 of acme: [redacted]"


def test_a_services_own_filter_has_the_last_word(caplog: pytest.LogCaptureFixture) -> None:
    """It sees what the rules left; where it fails, the message is withheld."""
    memory = MemoryListener()

    def own(message: str) -> str:
        assert SECRET not in message
        return message.upper() if "ok" in message else str(1 / 0)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory], error_filter=own) as saga:
            await saga.started({"card": SECRET})
            await saga.step_started("pay")
            await saga.step_failed("pay", ValueError(f"ok {SECRET}"))
            await saga.step_failed("pay", ValueError(f"not {SECRET}"))

    asyncio.run(main())
    assert [event.error_message for event in memory.events[2:]] == [
        "OK [REDACTED]",
        "[withheld: the filter of error messages failed]",
    ]
    assert SECRET not in caplog.text


def test_a_listeners_own_error_is_logged_without_values(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that quotes the context in its error does not bring it into the log."""

    class Leaks(MemoryListener):
        async def on_saga_started(self, saga_id: str, saga_name: str, context: Any) -> None:
            msg = f"can't send {context}"
            raise ValueError(msg)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[Leaks()]) as saga:
            await saga.started({"card": SECRET})

    asyncio.run(main())
    assert "Leaks.on_saga_started failed" in caplog.text
    assert SECRET not in caplog.text
