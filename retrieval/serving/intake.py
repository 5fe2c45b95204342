"""What stands before the service's endpoints: every request goes through here, in this order.

Doubled slashes go from its path; without a key where one is needed, or too often, it is refused;
beyond what can be waiting it is sent away; its body is read whole, within limits of length and
time; then it is answered, counted and timed. A body is JSON whatever its Content-Type says:
clip-retrieval's clients send none, and browsers text/plain.
"""

import asyncio
import re
import time
from contextlib import nullcontext, suppress
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.serving.admission import Admission
from retrieval.serving.errors import error_response
from retrieval.serving.keys import RateLimit, client_of, digest, read_keys
from retrieval.serving.metrics import Metrics
from retrieval.serving.settings import ServeSettings

OPEN_PATH = re.compile(r"/|/web/.*|/health|/config\.json|/openapi\.json")
"""Needs no key and has no limit: the page, and what tells of the service."""

LIGHT_PATH = re.compile(OPEN_PATH.pattern + "|/metrics")
"""Answered by the event loop alone, so never sent away: least of all when there is much to do."""

BODY_TIMEOUT_S = 30.0
"""For the whole of a request's body."""

LINGER_S = 5.0
"""So long what is too long is still taken, and thrown away: closing a connection that has unread
bytes resets it, and the client would read of that instead of its fault."""

MAX_BODIES_BYTES = 256_000_000
"""Of all requests under way."""

_DOUBLED = re.compile("//+")


class Intake:
    def __init__(
        self, app: ASGIApp, settings: ServeSettings, admission: Admission, metrics: Metrics
    ) -> None:
        self._app = app
        self._max_bytes = settings.max_request_bytes
        self._keys = read_keys(settings.keys) if settings.keys else None
        self._limit = (
            RateLimit(settings.rate_limit, settings.burst) if settings.rate_limit else None
        )
        self._admission = admission
        self._metrics = metrics
        self._num_body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = _DOUBLED.sub("/", scope["path"])
        status, start = 500, time.perf_counter()

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, send_noting)
        except HTTPException as error:
            response = error_response(error.status_code, error.detail, error.headers)
            await response(scope, receive, send_noting)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not OPEN_PATH.fullmatch(scope["path"]):
            self._check(self._client(scope))
        is_light = LIGHT_PATH.fullmatch(scope["path"]) is not None
        with nullcontext() if is_light else self._admission.admitted():
            self._metrics.inside.set(self._admission.num_inside)
            body = await self._body(Headers(scope=scope), receive)
            _take_for_json(scope)
            try:
                await self._app(scope, _replayed(body, receive), send)
            finally:
                self._num_body_bytes -= len(body)

    def _client(self, scope: Scope) -> str:
        """By its key, else by its address; raises HTTPException for a wrong key or none."""
        if self._keys is None:
            return client_of((scope.get("client") or ("",))[0])
        headers = Headers(scope=scope)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        key = headers.get("authorization", "").partition(" ")[2] or headers.get("x-api-key", "")
        name = self._keys.get(digest(key or query.get("key", [""])[0]))
        if name is None:
            raise HTTPException(
                401,
                "expected an API key: the header `Authorization: Bearer KEY`, or ?key=KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        return name

    def _check(self, client: str) -> None:
        if self._limit and (wait_s := self._limit.wait_s(client)):
            seconds = str(max(1, round(wait_s + 0.5)))
            raise HTTPException(
                429, f"too many requests; try again in {seconds} s", {"Retry-After": seconds}
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """Counted in `_num_body_bytes` until the request is answered."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            await _linger(receive)
            raise self._too_long()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HTTPException(400, "the request ended before its body did")
                    chunk = message.get("body", b"")
                    body += chunk
                    self._num_body_bytes += len(chunk)
                    more = message.get("more_body", False)
                    if len(body) > self._max_bytes:
                        if more:
                            await _linger(receive)
                        raise self._too_long()
                    if self._num_body_bytes > MAX_BODIES_BYTES:
                        raise self._admission.busy("too many long requests at once")
        except BaseException as error:
            self._num_body_bytes -= len(body)
            if isinstance(error, TimeoutError):
                raise HTTPException(408, f"the body took over {BODY_TIMEOUT_S:g} s") from None
            raise
        return bytes(body)

    def _too_long(self) -> HTTPException:
        # Where more is still to come, the connection can't be used again.
        return HTTPException(413, f"longer than {self._max_bytes:,} bytes", {"Connection": "close"})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # By route, never by path: a stranger's paths would make series without end.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.inside.set(self._admission.num_inside)
        self._metrics.note_request(route, status, seconds)


async def _linger(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass


def _take_for_json(scope: Scope) -> None:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*headers, (b"content-type", b"application/json")]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message; after it, what the connection itself says."""
    is_given = False

    async def receive_replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_replayed
