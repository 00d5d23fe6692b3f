"""What a webhook says and how it is signed, by the Standard Webhooks specification 1.0.0."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any

import msgspec

from sagascope.errors import PermanentError
from sagascope.events import CUT_MARK, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent

PAYLOAD_LIMIT = 20_000
"""Bytes of a body: the specification asks for less than 20 KB."""
_MESSAGE_CHARACTERS = 1_000
_KEY_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)
_WEBHOOK_ID = re.compile(r"[!-\-/-~]+")
"""Printable ASCII without a dot, which separates the parts of what is signed."""


def body_of(event: SagaEvent) -> bytes:
    """The body of the event's request: a JSON object, described at WebhookListener.

    Raises:
        PermanentError: it would be too large without anything that may be left out.
    """
    fields: dict[str, Any] = msgspec.json.decode(encode(event))
    duration = event.total_duration_ms if event.duration_ms is None else event.duration_ms
    content = {"event": fields["event_type"], **fields, "duration_ms": duration}
    cut: list[str] = []
    for field in ("error_message", "attributes", "context_keys", None):
        body = msgspec.json.encode(content)
        if len(body) < PAYLOAD_LIMIT:
            return body
        if field in content:
            cut.append(field)
            content["cut"] = cut
            message = content.pop(field)
            if field == "error_message":
                content[field] = message[:_MESSAGE_CHARACTERS] + CUT_MARK
    msg = f"the event has {len(body):,} bytes as a webhook, without what may be left out; allowed: {PAYLOAD_LIMIT:,}"
    raise PermanentError(msg)


def headers_of(event: SagaEvent, body: bytes, timestamp: int, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers that name the webhook, and sign it once with each key.

    Args:
        event: Its event_id is the webhook's id.
        body: The exact bytes that are sent.
        timestamp: Seconds since the epoch, of this try.
        keys: See `signing_key`; none: it is not signed.

    Raises:
        PermanentError: an event_id that can't be a webhook's.
    """
    if not _WEBHOOK_ID.fullmatch(event.event_id):
        msg = f"event_id {event.event_id[:100]!r} can't be a webhook-id; allowed: printable ASCII without '.'"
        raise PermanentError(msg)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": event.event_id,
        "webhook-timestamp": str(timestamp),
    }
    if keys:
        signed = f"{event.event_id}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(f"v1,{_signature(key, signed)}" for key in keys)
    return headers


def signing_key(secret: str) -> bytes:
    """The bytes that sign: what `whsec_` and base64 encode, else the text's own UTF-8. Messages don't show the secret.

    Raises:
        ValueError: empty, or no base64 of 24 to 64 bytes after `whsec_`.
    """
    if not secret.startswith(_KEY_PREFIX):
        if not secret:
            msg = "a secret is an empty string; allowed: any other text, or None for no secret"
            raise ValueError(msg)
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in _KEY_BYTES:
        msg = f"a secret that begins with {_KEY_PREFIX} is base64 of 24 to 64 bytes after that"
        raise ValueError(msg)
    return key


def _signature(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
