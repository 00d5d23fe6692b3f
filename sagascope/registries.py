"""What is registered once in each Prometheus registry, however many listeners count there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sagascope.drivers import load
from sagascope.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

C = TypeVar("C", bound="Collector")


class OncePerRegistry(Generic[C]):
    """The collector that each registry has of one kind, made and registered when it is first asked for.

    Args:
        needed_by: Who asks, for the message where the client library is missing.
        make: Makes the collector; is given what `of` is, after the registry.
    """

    def __init__(self, needed_by: str, make: Callable[..., C]) -> None:
        self._needed_by = needed_by
        self._make = make
        self._collectors: WeakKeyDictionary[CollectorRegistry, C] = WeakKeyDictionary()
        self._registering = threading.Lock()

    def of(self, registry: CollectorRegistry | None, *arguments: Any) -> C:
        """The registry's collector; the client library's own registry where None.

        Raises:
            ModuleNotFoundError: prometheus-client is not installed.
            PermanentError: the registry has other metrics of these names.
        """
        client = load("prometheus_client", needed_by=self._needed_by, package="prometheus-client", extra="prometheus")
        registry = client.REGISTRY if registry is None else registry
        with self._registering:
            if registry not in self._collectors:
                collector = self._make(*arguments)
                try:
                    registry.register(collector)
                except ValueError as error:
                    msg = f"{error}: they are another's (sagaz's PrometheusMetrics?); use one of both, or another registry"
                    raise PermanentError(msg) from error
                self._collectors[registry] = collector
            return self._collectors[registry]
