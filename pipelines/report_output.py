"""A report's answer, written in each of the formats."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from typing import TYPE_CHECKING

from pipelines.terminal import Format, print_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duckdb import DuckDBPyRelation

    from warehouse.reports import Report


class ReportFormat(StrEnum):
    """How a report is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    HTML = "html"


def write(
    answer: DuckDBPyRelation, output: ReportFormat, report: Report, about: Mapping[str, str], to: Path | None
) -> None:
    """Write the answer into a file, or to standard output.

    Args:
        answer: Its rows are fetched before the file is touched.
        output: Parquet, a page, or what `print_rows` prints.
        report: Which one it is the answer of.
        about: What the page says that it was asked about.
        to: The file, which is replaced; None: standard output.
    """
    match output:
        case ReportFormat.PARQUET:
            written = _parquet(answer)
        case ReportFormat.HTML:
            from warehouse.report_page import render  # noqa: PLC0415

            written = render(report, answer.columns, answer.fetchall(), about).encode()
        case _ if to is None:  # which may be a terminal
            print_rows(answer.columns, answer.fetchall(), Format(output.value))
            return
        case _:
            with redirect_stdout(io.StringIO()) as printed:
                print_rows(answer.columns, answer.fetchall(), Format(output.value))
            written = printed.getvalue().encode()
    if to is None:
        sys.stdout.buffer.write(written)
    else:
        to.write_bytes(written)


def _parquet(answer: DuckDBPyRelation) -> bytes:
    from pyarrow import BufferOutputStream, parquet  # noqa: PLC0415

    buffer = BufferOutputStream()
    parquet.write_table(answer.to_arrow_table(), buffer)
    written: bytes = buffer.getvalue().to_pybytes()
    return written
