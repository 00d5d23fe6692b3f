"""`sagascope audit verify`, as a script uses it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from sagascope import JsonLinesAuditLog, SQLAuditLog
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.audit.chain import AuditLog
    from tests.servers.postgresql import PostgresServer


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command says, and its exit code."""
    command = [sys.executable, "-m", "pipelines", "audit", "verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


async def append_two_sagas(log: AuditLog) -> str:
    """Eight entries; the hash of the fourth."""
    await log.append(a_run("order-1"))
    head = (await log.verify()).head
    await log.append(a_run("order-2"))
    await log.close()
    return head


def test_a_file(tmp_path: Path) -> None:
    """Whole: 0, and the head; changed: 1, and the entry; cut at its end: 1 with the head that was kept."""
    path = tmp_path / "audit.jsonl"
    asyncio.run(append_two_sagas(JsonLinesAuditLog(path)))
    done = verify(str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole: 8 entries" in done.stdout
    head = done.stdout.partition("head: ")[2].split()[0]
    assert verify(str(path), "--head", head).returncode == 0

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert verify(str(path)).returncode == 0
    cut = verify(str(path), "--head", head)
    assert (cut.returncode, "broken: entry 7 is missing" in cut.stdout) == (1, True)

    path.write_bytes(b"".join([*lines[:4], lines[4].replace(b"order-2", b"order-3"), *lines[5:]]))
    changed = verify(str(path), "--head", head)
    assert (changed.returncode, "broken: entry 5 (line 5) was changed" in changed.stdout) == (1, True)
    assert "4 entries before it are whole" in changed.stdout


def test_a_sqlite_file(tmp_path: Path) -> None:
    """Known by its first bytes, whatever it is called."""
    path = tmp_path / "audit.jsonl"
    head = asyncio.run(append_two_sagas(SQLAuditLog(path)))
    assert verify(str(path), "--head", head).returncode == 0
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER sagascope_audit_no_delete")
        connection.execute("DELETE FROM sagascope_audit WHERE sequence = 2")
    connection.close()
    done = verify(str(path))
    assert (done.returncode, "entry 2 (by its sequence) is number 3" in done.stdout) == (1, True)
    done = verify(str(path), "--table", "other")
    assert (done.returncode, "no such table: other" in done.stderr) == (1, True)


def test_a_table_of_postgresql(postgresql: PostgresServer) -> None:
    """By its DSN, whose password is never repeated; a table that is missing is said, not made."""
    dsn = postgresql.dsn(postgresql.create_database())
    missing = verify(dsn)
    assert (missing.returncode, "42P01" in missing.stderr) == (1, True)
    head = asyncio.run(append_two_sagas(SQLAuditLog(dsn)))
    assert verify(dsn, "--head", head).returncode == 0

    async def forge() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("ALTER TABLE sagascope_audit DISABLE TRIGGER ALL")
        await connection.execute("UPDATE sagascope_audit SET recorded_at = 1 WHERE sequence = 3")
        await connection.close()

    asyncio.run(forge())
    forged = verify(dsn)
    assert (forged.returncode, "entry 3 (by its sequence) was changed" in forged.stdout) == (1, True)
    assert "let-me-in" not in missing.stdout + missing.stderr + forged.stdout + forged.stderr


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("missing.jsonl", "No such file or directory"),
        ("postgresql://u:geheim@127.0.0.1:1/nowhere", "Connect call failed"),
        ("postgresql://u:ge/heim@h/d", "the DSN cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(log: str, said: str) -> None:
    """Exit code 1, no traceback, no password."""
    done = verify(log)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "heim" not in done.stderr
