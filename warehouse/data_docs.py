"""Makes Great Expectations' Data Docs a site of its own: nothing in it is loaded from elsewhere, nothing needs a script.

Its pages as they come load style sheets, scripts and images from nine hosts, and the first page is empty without them.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

_SITE = Path(__file__).parent / "site"
_FOREIGN = re.compile(
    r"<script\b.*?</script>"
    r"|<style\b.*?</style>"
    r"|<link\b[^>]*>"
    r'|<img\b[^>]*\bsrc="(?:https?:)?//[^>]*>'
    r"|<footer\b.*?</footer>",
    re.DOTALL | re.IGNORECASE,
)
_OUTWARD = re.compile(r'<a\b[^>]*\bhref="(?:https?:)?//[^>]*>(.*?)</a>', re.DOTALL | re.IGNORECASE)


class JudgedDay(NamedTuple):
    """One line of the first page."""

    table: str
    day: date
    rows: int
    rules: int
    errors: int
    warnings: int

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.errors or self.warnings:
            return "error" if self.errors else "warning"
        return "passed" if self.rows else "no rows"


def make_self_contained(folder: Path, days: Iterable[JudgedDay]) -> None:
    """Rewrite each page below the folder, and its first page anew: one line a table and day, with a link to its page.

    Args:
        folder: What Great Expectations built; a day's page is below validations/<table>/<day>/.
        days: What was judged.

    Raises:
        OSError: a page can't be read or written.
    """
    (folder / "index.html").write_text(_index(folder, list(days)), encoding="utf-8")
    style = f"<style>\n{(_SITE / 'quality.css').read_text(encoding='utf-8')}</style>\n"
    for page in folder.rglob("*.html"):
        text = _OUTWARD.sub(r"\1", _FOREIGN.sub("", page.read_text(encoding="utf-8")))
        page.write_text(text.replace("</head>", f"{style}</head>", 1), encoding="utf-8")


def _index(folder: Path, days: list[JudgedDay]) -> str:
    suites = ", ".join(
        f'<a href="expectations/{name}.html">{name}</a>' for name in dict.fromkeys(one.table for one in days)
    )
    template = Template((_SITE / "quality.html").read_text(encoding="utf-8"))
    return template.substitute(rows="\n".join(_line(folder, one) for one in days), suites=suites)


def _line(folder: Path, one: JudgedDay) -> str:
    [page] = (folder / "validations" / one.table / str(one.day)).rglob("*.html")
    numbers = "".join(
        f'<td class="number">{number:,}</td>' for number in (one.rows, one.rules, one.errors, one.warnings)
    )
    return (
        f'<tr><td>{one.table}</td><td><a href="{page.relative_to(folder).as_posix()}">{one.day}</a></td>{numbers}'
        f'<td class="{one.verdict}">{one.verdict}</td></tr>'
    )
