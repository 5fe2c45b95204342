"""Serve indices over HTTP: clip-retrieval's endpoints, /v1 with OpenAPI, and the search page.

    carrara serve ROOT [ROOT ...] --port 1234
    carrara serve laion=s3://bucket/corpus mine=./corpus --keys keys.txt --rate-limit 10

Reads   ROOT/index/<encoder>/, ROOT/columns/, and ROOT/shards/ for pictures
Writes  ROOT/selections/, only with --allow-save

It serves until it is interrupted, and takes up new indices and takedowns as they come.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillAtItError
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from infra.config import StageConfig
from infra.errors import ConfigError
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell
from retrieval.serving.settings import ServeSettings, name_and_root

if TYPE_CHECKING:
    from fastapi import FastAPI

Result = TypeVar("Result")

SAY_EVERY_S = 2.0
GRACE_S = 10
"""For requests under way when it is told to end."""

HTTP_SETTINGS: Mapping[str, Any] = {
    "http": "h11",  # its faster sibling answers what is too long before the application can
    # Of a request's line and headers: a long question in a URL is refused in words, too.
    "h11_max_incomplete_event_size": 1_000_000,
}
"""Of uvicorn."""


class Config(ServeSettings, StageConfig):
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 opens it to the network."""
    port: int = Field(default=1234, ge=0, le=65535)
    """0: any that is free."""


def run(config: Config) -> Summary:
    """Returns when it is told to end (Ctrl-C, SIGTERM); raises ConfigError for an address that
    can't be had, InputError for a corpus without an index."""
    with Stopwatch() as watch, _listener(config) as listener:
        names = ", ".join(name_and_root(root)[0] for root in config.roots)
        application = _while_saying(lambda: _loaded(config), f"loading {names}")
        service = application.state.service
        for served in service.indices.by_name.values():
            retriever = served.retriever
            _say(f"{served.name}: {retriever.num_rows:,} samples, encoder {retriever.encoder}")
        _say(f"ready at {_address(listener)} (page; API: /openapi.json); Ctrl-C ends it")
        with _ending_by_signal():
            _serve(application, listener, config)
    return Summary(
        stage="serve",
        num_in=service.metrics.num_requests,
        num_out=service.metrics.num_requests,
        unit="requests",
        seconds=watch.seconds,
        details={"indices": list(service.indices.by_name)},
    )


def _loaded(config: Config) -> "FastAPI":
    from retrieval.serving.app import create_app

    application = create_app(config)
    if config.warm:
        application.state.service.warm_up()
    return application


def _serve(application: "FastAPI", listener: socket.socket, config: Config) -> None:
    import uvicorn

    settings = uvicorn.Config(
        application,
        **HTTP_SETTINGS,
        access_log=False,
        log_level="warning",
        server_header=False,
        forwarded_allow_ips=config.trusted_proxies,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _listener(config: Config) -> socket.socket:
    """Bound before anything is loaded: that the port is taken is told at once."""
    place = f"--host {config.host} --port {config.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        # Of a name that can't be resolved the number is negative, and no system error's.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise ConfigError(
            f"{place}: can't listen there ({reason}); choose another port, or end what "
            "listens there already"
        ) from None


@contextlib.contextmanager
def _ending_by_signal() -> Iterator[None]:
    """SIGINT and SIGTERM end the service, not the process: it has a summary to give."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _while_saying(work: Callable[[], Result], what: str) -> Result:
    """The work's result; meanwhile a line every two seconds."""
    _say(what)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while True:
            try:
                return future.result(timeout=SAY_EVERY_S)
            except StillAtItError:
                if future.done():
                    raise
                _say(f"still {what}")


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _say(line: str) -> None:
    tell("note", f"serve: {line}")
