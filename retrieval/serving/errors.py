"""What goes wrong, as clients are told it: {"error": "one line"}, and never a path of this machine.

A client's mistake is 4xx. What the machine can't do now is 503, and the service's log on stderr
says why; a bug is 500 there too, with its traceback.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from infra.errors import CarraraError, ConfigError, DamagedError, InputError
from infra.watching.events import tell
from retrieval.asking.question import first_reason


class ErrorMessage(BaseModel):
    """Every answer that isn't 2xx."""

    error: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorMessage, "description": description}
    for status, description in {
        400: "not JSON, or a question that can't be answered",
        401: "no API key, or a wrong one",
        404: "no such index or sample",
        408: "the body took too long to come",
        413: "the request is too long",
        422: "a field that is missing, unknown or out of range",
        429: "too many requests; Retry-After says when to come back",
        503: "too much to do; Retry-After says when to come back",
    }.items()
}
"""What any endpoint may answer, for OpenAPI."""


class BusyError(HTTPException):
    """There is more to do than can be done in time."""

    def __init__(self, retry_after_s: float, reason: str) -> None:
        seconds = str(max(1, round(retry_after_s)))
        super().__init__(503, f"{reason}; try again in {seconds} s", {"Retry-After": seconds})


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(CarraraError, _on_mistake)
    app.add_exception_handler(Exception, _on_bug)


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def validation_line(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors; what was given is not repeated: it may be megabytes."""
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    return " ".join(first_reason([first | {"loc": place}]).split())


def log(line: str) -> None:
    tell("error", f"serve: {line}")


def log_damage(error: DamagedError) -> None:
    """Once: what is damaged will be asked for again and again."""
    _log_once(str(error))


@lru_cache(maxsize=1000)
def _log_once(line: str) -> None:
    log(line)


async def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), error.headers)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return error_response(400, f"the body is not JSON: {errors[0]['ctx']['error']}")
    return error_response(422, validation_line(errors))


async def _on_mistake(request: Request, error: Exception) -> Response:
    assert isinstance(error, CarraraError)
    if isinstance(error, InputError | ConfigError):
        return error_response(400, request.app.state.indices.without_paths(str(error)))
    log(f"{request.url.path}: {error}")
    retry = {"Retry-After": "10"}
    return error_response(503, "can't be answered now; the service's log says why", retry)


async def _on_bug(_request: Request, _error: Exception) -> Response:
    # Starlette raises it again once this is sent, so that the log has its traceback.
    return error_response(500, "a fault of the service; its log says more")
