"""Errors as programs read them: one shape for all, naming the field and the fix.

{"error": {"code": "unknown_account", "field": "account_id", "message": "…", "retry_can_help": true}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException

from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused, TollbookError, Unavailable
from services.runtime.database import is_retryable

log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[TollbookError], int], ...] = (
    (InvalidInput, 422),
    (NotFound, 404),
    (Refused, 409),
    (NotPermitted, 403),
    (Unavailable, 503),
)
AGAIN_S = "1"


class Problem(BaseModel):
    """What is wrong, for programs and for people."""

    code: Annotated[str, Field(description="stable")]
    field: Annotated[str | None, Field(description="what of the request it is about")]
    message: Annotated[str, Field(description="how to mend it")]
    retry_can_help: Annotated[bool, Field(description="whether the same request may succeed later as it is")]


class Failure(BaseModel):
    """Every answer but 200."""

    error: Problem


Codes = Mapping[int, Sequence[str]]
"""Codes of errors by status."""

_OF_EVERY_PATH: Codes = {500: ("internal_error",), 503: ("unavailable", "timeout")}


def of_path(*groups: Codes) -> dict[int | str, dict[str, Any]]:
    """The error answers of a path, for its description: these, and those that every path has."""
    codes: dict[int, list[str]] = {}
    for each in (*groups, _OF_EVERY_PATH):
        for status, of_status in each.items():
            codes.setdefault(status, []).extend(of_status)
    return {
        status: {"model": Failure, "description": ", ".join(f"`{code}`" for code in codes[status])}
        for status in sorted(codes)
    }


def explain(app: FastAPI) -> None:
    """Answer every error of an application in this shape."""
    app.add_exception_handler(TollbookError, _of_ours)
    app.add_exception_handler(RequestValidationError, _of_body)
    app.add_exception_handler(HTTPException, _of_path)
    for kind in (DBAPIError, InterfaceError, NoConnection, OSError, Exception):
        app.add_exception_handler(kind, _of_server)


def _shown(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    retry_can_help: bool = False,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    more = dict(headers or {}) | ({"Retry-After": AGAIN_S} if status == 503 else {})
    error = {"code": code, "field": field, "message": message, "retry_can_help": retry_can_help}
    return JSONResponse({"error": error}, status, more)


async def _of_ours(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, TollbookError):
        raise error
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if status == 500:
        log.error("%s: %s", error.code, error, exc_info=error)
    return _shown(status, error.code, error.message, field=error.field, retry_can_help=error.retry_can_help)


async def _of_body(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body or a parameter. What was sent is not repeated: it may be anything."""
    first: Mapping[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = [str(part) for part in first.get("loc", ())[1:]]  # the first says where: in the body, the query or the path
    if first.get("type") == "json_invalid":
        return _shown(400, "invalid_json", "the body must be one JSON object")
    return _shown(422, "invalid", str(first.get("msg", "is not what it must be")), field=".".join(place) or None)


async def _of_path(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    code = {404: "unknown_path", 405: "wrong_method", 408: "timeout", 413: "too_large"}.get(status, "refused")
    message = f"there is no {request.method} {request.url.path} here; /openapi.json lists what there is"
    if status in (408, 413) and isinstance(error, HTTPException):
        message = error.detail
    field = "body" if status in (408, 413) else None
    return _shown(status, code, message, field=field, retry_can_help=status == 408, headers=headers)


async def _of_server(_: Request, error: Exception) -> JSONResponse:
    log.error("a server failed: %s", type(error).__name__, exc_info=error)
    if is_retryable(error):
        return _shown(503, "unavailable", "the database does not answer; ask again", retry_can_help=True)
    return _shown(500, "internal_error", "this could not be answered; the log of the gateway says why")
