"""Paths that take one JSON document: read, checked and written by pydantic alone.

What FastAPI does around a body takes longer than all else that is done in a process for a call. It still routes, and describes
the path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.gateway.deadlines import in_time
from services.gateway.errors import Codes
from services.kernel.errors import InvalidInput
from services.runtime.http_server import BODY_S_MAX, read_body

JSON = "application/json"
ERRORS: Codes = {
    400: ("invalid_json",),
    408: ("timeout",),
    413: ("too_large",),
    422: ("invalid",),
}
"""Of every path that takes a body."""

BODY_BYTES_MAX = 16_384  # a call takes a few hundred; what is checked holds up all other calls of this process

# Values are not looked at: numbers may have any number of digits.
_PAIRS = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str)


def _refuse_repeated(document: bytes) -> None:
    """Raise for a field that a document, which is valid else, has twice: other readers on its way may have taken the first."""
    seen: set[str] = set()
    for name, _ in _PAIRS.decode(document.decode()):
        if name in seen:
            raise InvalidInput("is given more than once; give it once", field=name)
        seen.add(name)


class BodyRoute(APIRoute):
    """A path whose function takes its body and nothing else, and gives a model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Of the path: from a request to its response."""
        if self.body_field is None:
            raise TypeError(f"{self.path} takes no body")
        body: Any = self.body_field.field_info.annotation
        validate = TypeAdapter(body).validator.validate_json
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            # A browser sends other types to other sites without asking them first.
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
                raise InvalidInput(f"must be {JSON}", field="content-type")
            try:
                document = await read_body(request, BODY_BYTES_MAX)
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {BODY_S_MAX:.0f} s") from None
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it
            if document is None:
                raise HTTPException(413, f"the body must be at most {BODY_BYTES_MAX} bytes")
            try:
                asked = validate(document)
                _refuse_repeated(document)
            except ValidationError as error:
                wrong = error.errors(include_url=False, include_input=False)[0]
                raise RequestValidationError([wrong | {"loc": ("body", *wrong["loc"])}]) from None
            return Response(to_json(await in_time(request, endpoint(asked))), media_type=JSON)

        return handle
