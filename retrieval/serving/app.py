"""The service as an ASGI application: clip-retrieval's endpoints, /v1, the page, health, metrics.

Reads   the indices and corpora of its settings, retrieval/web/
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from retrieval.serving import compat, v1
from retrieval.serving.errors import add_handlers, log
from retrieval.serving.intake import Intake
from retrieval.serving.service import Service
from retrieval.serving.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

WEB = Path(__file__).parents[1] / "web"

PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            # Another service can be asked through this page: the choice is the user's.
            "connect-src 'self' http: https:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Of the page: even if a hostile caption became markup, it could run and load nothing."""

QUIET: "TelemetryConfig" = {"tracing": False, "metrics": False, "logs": False}
"""What is told of requests is in /metrics."""


def create_app(settings: ServeSettings) -> FastAPI:
    """Opens the indices; raises InputError where a corpus has none."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        fresh = asyncio.create_task(service.keep_fresh())
        fresh.add_done_callback(_tell_of_its_end)
        yield
        fresh.cancel()
        service.close()

    app = FastAPI(
        title="Carrara",
        summary="Search a corpus of pictures and captions.",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        telemetry=QUIET,
    )
    app.state.service = service
    app.state.indices = service.indices
    add_handlers(app)
    app.include_router(compat.router)
    app.include_router(v1.router)
    _add_page(app)
    # Added last, met first.
    app.add_middleware(
        Intake, settings=settings, admission=service.admission, metrics=service.metrics
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )
    return app


def _version() -> str:
    try:
        return metadata.version("carrara")
    except metadata.PackageNotFoundError:  # a checkout runs unbuilt
        return "0"


def _tell_of_its_end(fresh: "asyncio.Task[None]") -> None:
    """A bug there must not pass for an index that stays as it is."""
    if not fresh.cancelled() and (error := fresh.exception()):
        log(f"no longer looks for new indices and takedowns ({error!r}); start it again")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    class Files(StaticFiles):
        def file_response(self, *args: Any, **kwargs: Any) -> Response:
            response = super().file_response(*args, **kwargs)
            response.headers.update(PAGE_HEADERS)
            return response

    app.mount("/web", Files(directory=WEB))
