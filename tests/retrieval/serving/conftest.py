"""A corpus of emoji with its index, served by uvicorn in a thread of the test's process."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from infra.cluster import Workers
from pipeline.corpus import Manifest, iter_samples, read_manifest
from retrieval import embed, index
from retrieval.serve import HTTP_SETTINGS
from retrieval.serving.app import create_app
from retrieval.serving.settings import ServeSettings

HERE = Workers(local=True)


@pytest.fixture(scope="session")
def served_root(
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """24 emoji, embedded and indexed; the folder is called `emoji`."""
    root = str(tmp_path_factory.mktemp("served") / "emoji")
    make_corpus(root)
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=root))
    return root


@pytest.fixture(scope="session")
def samples(served_root: str) -> list[Any]:
    manifest = read_manifest(served_root)
    return [one for shard in manifest.shards for one in iter_samples(served_root, shard)]


@contextmanager
def serving(*roots: str, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a service with these settings."""
    app = create_app(ServeSettings(roots=roots, **settings))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, **HTTP_SETTINGS, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=300, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def start_service() -> Callable[..., AbstractContextManager[httpx.Client]]:
    return serving


@pytest.fixture(scope="session")
def client(served_root: str) -> Iterator[httpx.Client]:
    """Of one service with the default settings, for all tests that change nothing in it."""
    # On a busy machine a test's question may wait long for its turn.
    with serving(served_root, max_wait_s=300, fetch={"retries": 0, "timeout": 5}) as client:
        yield client


@pytest.fixture(scope="session")
def picture(samples: list[Any]) -> str:
    """A sample's, in base64."""
    return base64.b64encode(samples[3].image).decode()
