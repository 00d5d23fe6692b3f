"""The Grafana dashboard asks for nothing that is not there."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from pipelines.dashboard.grafana import dashboard
from pipelines.dashboard.metrics import LiveMetrics
from tests.warehouse.planted import append
from tests.warehouse.test_live import story
from warehouse.tables import EVENTS
