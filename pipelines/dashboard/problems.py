"""What can't be answered, as JSON that names the value and the cure."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import duckdb
import msgspec
import typer
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pipelines.dashboard.answers import Problem
from pipelines.moments import FutureMomentError
from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import FastAPI

logger = logging.getLogger(__name__)


class UnusableError(ValueError):
    """A parameter has a value that is none of those allowed."""

    def __init__(self, name: str, value: str, allowed: Iterable[str]) -> None:
        super().__init__(f"no {name} {value!r}")
        self.value, self.cure = value, f"{name} is one of {', '.join(allowed)}"


class NotFoundError(LookupError):
    """There is no such thing."""

    def __init__(self, what: str, value: str, cure: str) -> None:
        super().__init__(f"no {what} {value!r}")
        self.value, self.cure = value, cure


def handle_problems(app: FastAPI) -> None:
    """Have every error answered as a Problem."""
    for kind in (
        UnusableError,
        NotFoundError,
        RequestValidationError,
        typer.BadParameter,
        FutureMomentError,
        LookupError,
        ValueError,
        WarehouseError,
        duckdb.Error,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    status, problem = _judged(request, error)
    if isinstance(error, duckdb.Error):  # others uvicorn logs
        logger.error("%s could not be answered", request.url.path, exc_info=error)
    return Response(msgspec.json.encode(problem), status, media_type="application/json")


def _judged(request: Request, error: Exception) -> tuple[int, Problem]:  # noqa: PLR0911 - one a kind of error
    told = str(error)
    match error:
        case UnusableError():
            return 422, Problem(error=told, value=error.value, cure=error.cure)
        case NotFoundError():
            return 404, Problem(error=told, value=error.value, cure=error.cure)
        case RequestValidationError():
            first = error.errors()[0]
            name = next(str(part) for part in reversed(first["loc"]) if isinstance(part, str))
            return 422, Problem(error=f"{name}: {first['msg']}", value=str(first.get("input")), cure="see /docs")
        case typer.BadParameter():
            return 422, Problem(error=error.message, cure="see /docs")
        case HTTPException():
            return error.status_code, Problem(error=str(error.detail), value=request.url.path, cure="see /docs")
        case FutureMomentError() | ValueError():
            return 422, Problem(error=told, cure="see /docs")
        case LookupError():
            return 404, Problem(error=told, cure="see /docs")
        case WarehouseError():
            return 503, Problem(error=told, cure="/api/v1/live says how the tables are")
        case _:
            return 500, Problem(error=f"{type(error).__name__}: {told}", cure="the server's log says more")
