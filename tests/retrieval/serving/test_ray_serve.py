"""The service on a real local Ray Serve, deployed from a Serve configuration as KubeRay does."""

import json
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.errors import ConfigError
from retrieval.serving.ray_serve import application

REPOSITORY = Path(__file__).parents[3]
START_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def serve_client(served_root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    search = {
        "name": "search",
        "import_path": "retrieval.serving.ray_serve:application",
        "route_prefix": "/",
        "args": {"roots": [served_root], "warm": False},
        "deployments": [{"name": "Search", "num_replicas": 1, "max_ongoing_requests": 100}],
    }
    http = {"host": "127.0.0.1", "port": port}
    config = folder / "serve.json"
    config.write_text(json.dumps({"http_options": http, "applications": [search]}))
    program = str(Path(sysconfig.get_path("scripts")) / "serve")
    command = [program, "run", "--address=local", str(config)]  # no one else's cluster
    patient = {"RAY_raylet_start_wait_time_s": "120"}  # on a busy machine
    environment = {**os.environ, **patient, "PYTHONPATH": str(REPOSITORY)}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(address, server, folder / "log")
        yield address
    finally:
        server.terminate()
        server.wait()


def test_a_replica_answers_as_the_service_does(serve_client: str, client: httpx.Client) -> None:
    question = {"text": "a red heart", "modality": "image", "num_images": 3, "indice_name": "emoji"}
    with httpx.Client(base_url=serve_client, timeout=120, trust_env=False) as replica:
        answer = replica.post("/knn-service", json=question)
        assert answer.status_code == 200, answer.text
        assert answer.json() == client.post("/knn-service", json=question).json()
        assert "Carrara" in replica.get("/").text


def test_wrong_settings_are_refused_before_any_replica_starts() -> None:
    with pytest.raises(ConfigError, match=r"args\.rate_limit -1"):
        application({"roots": ["somewhere"], "rate_limit": -1})


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(f"{address}/config.json", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail(log.read_text()[-2000:])
