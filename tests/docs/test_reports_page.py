"""docs/reports.md names every report, in the words of its SQL file."""

from __future__ import annotations

from pathlib import Path

from warehouse import reports, targets

PAGE = Path(__file__).parents[2] / "docs" / "reports.md"
UNITS = {86_400: "day", 3_600: "hour", 60: "minute"}


def line(report: reports.Report) -> str:
    """The report's line of the table."""
    seconds = round(report.span.total_seconds())
    unit = next(unit for unit in UNITS if seconds % unit == 0)
    span = f"{seconds // unit} {UNITS[unit]}{'' if seconds == unit else 's'}"
    return f"| `{report.name}` | {span} | {report.title} |"


def test_each_report_has_its_line() -> None:
    """In the order of `sagascope report`; where this fails, these are the lines to put there."""
    told = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| `")]
    assert told == [line(reports.load(name)) for name in reports.NAMES]


def test_the_example_of_targets_is_one(tmp_path: Path) -> None:
    """It can be copied."""
    text = PAGE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "targets.yaml"
    file.write_text(text, encoding="utf-8")
    assert len(targets.load(file)) == 3
