"""Prometheus's view of a command, scraped from a real port and read by its own parser."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.config import StageConfig
from infra.errors import ConfigError
from infra.progress import track
from infra.summary import Summary
from infra.watching.metrics import served
from infra.watching.run import Run, State, at_work


def scrape(port: int) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Value by labels, by the name of the metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_progress_values_and_outcomes_are_scraped_while_they_change() -> None:
    run, port = Run("score", None, StageConfig()), free_port()
    own = {("stage", "score"), ("run", run.name)}
    with served(run, str(port)), at_work(run):
        with track("score", 10, "samples") as bar:
            bar.advance(4)
            task = own | {("task", "score"), ("unit", "samples")}
            found = scrape(port)
            assert found["carrara_progress_done"][frozenset(task)] == 4
            assert found["carrara_progress_total"][frozenset(task)] == 10
            assert found["carrara_up"][frozenset(own)] == 1
            assert found["carrara_eta_seconds"]
        run.values["loss"] = 0.25
        run.num_failed = 2
        run.end(State.DONE, summary=Summary("score", 10, 9, counts={"http 404": 1}))
        found = scrape(port)
    assert found["carrara_value"][frozenset(own | {("name", "loss")})] == 0.25
    assert found["carrara_outcomes"][frozenset(own | {("status", "http 404")})] == 1
    assert found["carrara_failures_total"][frozenset(own)] == 2
    assert found["carrara_up"][frozenset(own)] == 0
    assert found["process_cpu_seconds_total"]


def test_the_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        with served(Run("score", None, StageConfig()), f"127.0.0.1:{port}"):
            assert scrape(port)["carrara_up"]


@pytest.mark.parametrize("address", ["here", "localhost:port", "70000", "192.0.2.1:9400"])
def test_an_address_that_can_t_be_had_is_named(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=address),
        served(Run("score", None, StageConfig()), address),
    ):
        pass


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=str(port)),
            served(Run("score", None, StageConfig()), str(port)),
        ):
            pass
