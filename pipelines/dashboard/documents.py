"""The API's own description: OpenAPI with the answers' schemas, and a page of it that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec
from fastapi.openapi.utils import get_openapi

from pipelines.dashboard import answers
from warehouse.live_frame import Frame
from warehouse.live_running import RunningPage

if TYPE_CHECKING:
    from fastapi import FastAPI

ANSWERS = (
    Frame,
    RunningPage,
    answers.Problem,
    answers.Health,
    answers.Rows,
    answers.ReportAbout,
    answers.ReportAnswer,
    answers.WholeSaga,
    answers.Flow,
    answers.System,
)
CSP = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color-scheme: light dark }
code { font-family: ui-monospace, monospace } dt { margin-top: 1rem } dd { margin-left: 1.5rem }
"""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; FastAPI knows the parameters, msgspec the answers."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, schemas = msgspec.json.schema_components(ANSWERS, ref_template="#/components/schemas/{name}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        app.openapi_schema = document
    return app.openapi_schema


def answered(kind: Any, description: str = "The answer") -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its description."""
    return {
        200: {"description": description, "content": {"application/json": {"schema": _reference(kind)}}},
        "4XX": {
            "description": "Can't be answered",
            "content": {"application/json": {"schema": _reference(answers.Problem)}},
        },
        503: {
            "description": "No tables to read",
            "content": {"application/json": {"schema": _reference(answers.Problem)}},
        },
    }


def page(app: FastAPI) -> str:
    """The routes as a plain page."""
    listed = []
    for path, operations in describe(app)["paths"].items():
        for method, operation in operations.items():
            given = "".join(
                f"<li><code>{escape(one['name'])}</code> {escape(one.get('description', ''))}</li>"
                for one in operation.get("parameters", ())
            )
            about = escape(operation.get("description", operation.get("summary", "")))
            listed.append(f"<dt><code>{method.upper()} {escape(path)}</code></dt><dd>{about}<ul>{given}</ul></dd>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(app.title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(app.title)}</h1><p>{escape(app.description)} The machine's version of this page: "
        f"<a href='/openapi.json'>openapi.json</a>.</p><dl>{''.join(listed)}</dl></html>"
    )


def _reference(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is list:
        return {"type": "array", "items": _reference(get_args(kind)[0])}
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
