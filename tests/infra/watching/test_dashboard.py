"""The dashboard's questions, asked of a real Prometheus that scrapes runs and a service."""

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import start_http_server

from infra.config import StageConfig
from infra.progress import track
from infra.summary import Summary
from infra.watching.metrics import LINGER_S, served
from infra.watching.run import Run, State, at_work
from retrieval.serving.metrics import Metrics

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "infra" / "deploy" / "compose"
DASHBOARD = json.loads((COMPOSE / "grafana" / "dashboards" / "carrara.json").read_text())


def test_every_panel_of_the_dashboard_has_an_answer(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    run_port, service_port, port = free_ports(3)
    run = Run("train", None, StageConfig())
    names = ("loss", "images_per_s", "mfu_percent", "stall_percent")
    run.values |= dict.fromkeys(names, 1.0)
    service = Metrics()
    server, thread = start_http_server(service_port, "127.0.0.1", service.registry)
    with (
        served(run, str(run_port)),
        at_work(run),
        prometheus(tmp_path, port, [run_port, service_port]),
    ):
        with track("train", 10**6, "steps") as bar:
            deadline, unanswered = time.monotonic() + 30, dict(questions())
            while unanswered and time.monotonic() < deadline:
                bar.advance(1)
                service.note_request("/v1/search", 200, 0.01)
                run.summary = Summary("train", 1, 1, counts={"done": 1})
                time.sleep(0.5)
                unanswered = {
                    title: query for title, query in unanswered.items() if not ask(port, query)
                }
        run.end(State.DONE)
    server.shutdown()
    server.server_close()
    thread.join()
    assert unanswered == {}


def test_what_became_of_the_rows_is_told_to_prometheus_before_a_command_ends(
    tmp_path: Path, free_ports: Callable[[int], list[int]], small_corpus: str
) -> None:
    run_port, port = free_ports(2)
    command = [sys.executable, "carrara.py", "score", small_corpus, "--signals", "caption"]
    command += ["--local", "--json", "--metrics", str(run_port)]
    with prometheus(tmp_path, port, [run_port]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        deadline, found = time.monotonic() + 10, list[Any]()
        while not found and time.monotonic() < deadline:  # it keeps an answer a moment later
            found = ask(port, "last_over_time(carrara_outcomes[1h])")
            time.sleep(0.1)
        at_work = ask(port, "last_over_time(carrara_up[1h])")
    told = {one["metric"]["status"]: float(one["value"][1]) for one in found}
    assert told == json.loads(done.stdout)["counts"]
    assert [one["value"][1] for one in at_work] == ["0"]


def test_compose_scrapes_commands_where_its_environment_has_them_serve() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    scraped = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["scrape_configs"]
    (commands,) = (job for job in scraped if job["job_name"] == "commands")
    port = compose["services"]["head"]["environment"]["CARRARA_METRICS"].rpartition(":")[2]
    assert commands["static_configs"] == [{"targets": [f"head:{port}"]}]
    assert float(commands["scrape_interval"].removesuffix("s")) < LINGER_S


def questions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", target["expr"]


def ask(port: int, query: str) -> list[Any]:
    words = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{words}") as answer:
        told = json.load(answer)
    assert told["status"] == "success", query
    found: list[Any] = told["data"]["result"]
    return [one for one in found if one["value"][1] != "NaN"]


@contextmanager
def prometheus(folder: Path, port: int, targets: list[int]) -> Iterator[None]:
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "tested",
                "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    log = folder / "prometheus.log"
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as server:
        try:
            wait_until_ready(port, log)
            yield
        finally:
            server.terminate()


def wait_until_ready(port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"Prometheus did not start:\n{log.read_text()[-2000:]}")
