"""Paths that take one JSON document: read, checked and written by pydantic alone.

What FastAPI does around a body takes longer than all else that is done in a process for a call. It still routes, and describes
the path.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from services.kernel.errors import InvalidInput

JSON = "application/json"


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
            document = await request.body()
            # A browser sends other types to other sites without asking them first.
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
                raise InvalidInput(f"must be {JSON}", field="content-type")
            try:
                asked = validate(document)
            except ValidationError as error:
                raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
            return Response(to_json(await endpoint(asked)), media_type=JSON)

        return handle
