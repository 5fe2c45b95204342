"""What Prometheus is told of a command at work, at http://HOST:PORT/metrics.

    carrara_progress_done   {stage, run, task, unit}   and carrara_progress_total, where it is known
    carrara_eta_seconds     {stage, run, task}         seconds to the task's end at its rate so far
    carrara_outcomes        {stage, run, status}       from the summary: rows or samples by status
    carrara_failures_total  {stage, run}               items that failed for good
    carrara_value           {stage, run, name}         what a stage measures of itself, as its loss
    carrara_up              {stage, run}               1 while the command is at work

Read from the run when asked; a registry a run, beside the process's own figures.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.errors import ConfigError
from infra.watching.events import tell
from infra.watching.run import Run, State

LINGER_S = 6.0
"""That a command which is done still answers, unless it was asked again before: what became of its
rows is known only then. Prometheus asks every five seconds (deploy/compose/prometheus.yaml)."""


class RunCollector(Collector):
    def __init__(self, run: Run) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        own = [self._run.stage, self._run.name]
        yield _gauge(
            "up", "1 while the command is at work", {(): self._run.state is State.RUNNING}, own
        )
        tasks = list(self._run.tasks)
        yield _gauge(
            "progress_done",
            "Units done",
            {(t.name, t.unit): t.done for t in tasks},
            own,
            "task",
            "unit",
        )
        totals = {(t.name, t.unit): t.total for t in tasks if t.total is not None}
        yield _gauge("progress_total", "Units in all", totals, own, "task", "unit")
        left = {(t.name,): t.seconds_left for t in tasks if t.seconds_left is not None}
        yield _gauge("eta_seconds", "Seconds to the task's end at its rate", left, own, "task")
        values = {(name,): value for name, value in list(self._run.values.items())}
        yield _gauge("value", "What the stage measures of itself", values, own, "name")
        counts = self._run.summary.counts if self._run.summary else {}
        yield _gauge("outcomes", "By status", {(s,): n for s, n in counts.items()}, own, "status")
        failures = CounterMetricFamily("carrara_failures", "Items that failed for good", labels=OWN)
        failures.add_metric(own, self._run.num_failed)
        yield failures


OWN = ["stage", "run"]


def _gauge(
    name: str, text: str, values: Mapping[Any, float], own: list[str], *labels: str
) -> GaugeMetricFamily:
    """`values` by the further labels' values, in their order."""
    family = GaugeMetricFamily(f"carrara_{name}", text, labels=[*OWN, *labels])
    for key, value in values.items():
        family.add_metric([*own, *key], value)
    return family


@contextmanager
def served(run: Run, address: str, *, is_needed: bool = True) -> Iterator[None]:
    """Answers at PORT or HOST:PORT, on this machine alone where no host is named, and after the
    run's end until that was told once.

    Raises ConfigError for an address that can't be had; where it is not needed a line says so.
    """
    name = f"--metrics {address}" if is_needed else f"CARRARA_METRICS={address}"
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"{name}: expected PORT or HOST:PORT, such as 0.0.0.0:9400")
    registry = _registry(run)
    try:
        listening = start_http_server(int(port), host or "127.0.0.1", registry)
    except (OSError, OverflowError) as error:
        problem = f"{name}: can't listen there ({error}); expected a free port here"
        if is_needed:
            raise ConfigError(problem) from None
        tell("warning", f"carrara: {problem}; this command goes on without metrics")
        listening = None
    if listening is None:
        yield
        return
    server, thread = listening
    is_told = _told_of_the_end(server, registry, run)
    try:
        yield
        if run.summary is not None:
            with suppress(KeyboardInterrupt):  # its work is done
                is_told.wait(LINGER_S)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(run: Run) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(RunCollector(run))
    return registry


def _told_of_the_end(server: WSGIServer, registry: CollectorRegistry, run: Run) -> threading.Event:
    """Set once an answer with the run's summary in it was sent."""
    answer, is_told = make_wsgi_app(registry), threading.Event()

    def answer_and_note(environ: WSGIEnvironment, start: StartResponse) -> Iterator[bytes]:
        is_over = run.summary is not None
        yield from answer(environ, start)
        if is_over:
            is_told.set()

    server.set_app(answer_and_note)
    return is_told
