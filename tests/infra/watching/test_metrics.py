"""Prometheus's view of a command, scraped from a real port and read by its own parser."""

import socket
import threading
import time
import urllib.request
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

import carrara
from infra.config import StageConfig
from infra.errors import ConfigError, InputError
from infra.progress import track
from infra.summary import Summary
from infra.watching import metrics
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


def test_a_command_that_is_done_answers_until_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "LINGER_S", 3600.0)
    run, port = Run("score", None, StageConfig()), free_port()
    found: list[float] = []

    def ask_afterwards() -> None:
        is_over.wait()
        found.extend(scrape(port)["carrara_outcomes"].values())

    is_over, asking = threading.Event(), threading.Thread(target=ask_afterwards)
    asking.start()
    with served(run, str(port)), at_work(run):
        scrape(port)  # before the end: not the answer that is waited for
        run.end(State.DONE, summary=Summary("score", 10, 9, counts={"http 404": 1}))
        is_over.set()
    asking.join()
    assert found == [1]


def test_an_unfinished_command_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LINGER_S", 3600.0)
    with pytest.raises(InputError), served(Run("score", None, StageConfig()), str(free_port())):
        raise InputError("no")


def test_a_taken_port_is_done_without_where_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_corpus: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("CARRARA_METRICS", address)
        assert carrara.run_command(["verify", small_corpus]) == 0
        warnings = capsys.readouterr().err.splitlines()
        assert carrara.run_command(["verify", small_corpus, "--metrics", address]) == 2
        (error,) = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in warnings if line.startswith("carrara: ")]
    assert f"CARRARA_METRICS={address}: can't listen there" in warning
    assert f"--metrics {address}: can't listen there" in error


def test_the_environment_s_port_is_served(
    monkeypatch: pytest.MonkeyPatch, small_corpus: str
) -> None:
    port = free_port()
    monkeypatch.setenv("CARRARA_METRICS", str(port))
    monkeypatch.setattr(metrics, "LINGER_S", 3600.0)
    code: list[int] = []
    command = threading.Thread(
        target=lambda: code.append(carrara.run_command(["verify", small_corpus]))
    )
    command.start()
    deadline = time.monotonic() + 60
    while command.is_alive() and time.monotonic() < deadline:
        with suppress(OSError):
            scrape(port)
        time.sleep(0.1)
    command.join(timeout=1)
    assert code == [0]
