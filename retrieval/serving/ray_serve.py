"""`carrara serve` as a Ray Serve application: replicas on a cluster instead of one process.

    applications:
      - name: search
        import_path: retrieval.serving.ray_serve:application
        args: {roots: [s3://bucket/corpus]}

Reads   what `carrara serve` reads, in each replica

The settings are those of `carrara serve`, but for the address, which is Ray Serve's. Each replica
opens the indices itself: its rate limits and its metrics are its own. `/metrics` therefore answers
for whichever replica the request came to; Ray's metrics count over all of them.
"""

from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from infra.errors import ConfigError
from retrieval.serving.settings import ServeSettings

MAX_ONGOING_REQUESTS = 1000
"""Of one replica; it answers questions that come together in one batch, so 5, Ray Serve's default,
would keep the batches small. Beyond, its own `max_waiting` answers 503."""


def application(args: dict[str, Any]) -> Application:
    """What `import_path` in a Serve configuration names; raises ConfigError for wrong settings."""
    try:
        settings = ServeSettings.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"args.{name} {first['input']!r}: {first['msg']}") from None

    def build() -> ASGIApp:
        """In the replica: what it opens can't be sent there."""
        from retrieval.serving.app import create_app

        app = create_app(settings)
        if settings.warm:
            app.state.service.warm_up()
        return app

    replica = serve.deployment(
        serve.ingress(build)(), name="Search", max_ongoing_requests=MAX_ONGOING_REQUESTS
    )
    return replica.bind()
