"""Audit logs: every event once, in a chain of hashes that shows what was changed or taken away afterwards."""

from __future__ import annotations

from sagascope.audit.json_lines import JsonLinesAuditLog
from sagascope.audit.sql import SQLAuditLog

__all__ = ["JsonLinesAuditLog", "SQLAuditLog"]
