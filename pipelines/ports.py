"""Ports of the loopback interface."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(*wanted: int) -> list[int]:
    """Ports on which nobody listens: the wanted ones where they are free, others for those that are not, and for 0."""
    with ExitStack() as held:
        endpoints = [held.enter_context(socket.socket()) for _ in wanted]
        for endpoint, port in zip(endpoints, wanted, strict=True):
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                endpoint.bind(("127.0.0.1", port))
            except OSError:
                endpoint.bind(("127.0.0.1", 0))
        return [endpoint.getsockname()[1] for endpoint in endpoints]


def free_port() -> int:
    """One on which nobody listens."""
    return free_ports(0)[0]
