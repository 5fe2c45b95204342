"""One way to spread a stage's items over Ray workers, on one machine or many.

A worker is made once in each process (`make()` loads what is dear: a model, a connection pool) and
then applied to item after item. Items in flight are bounded, a failed item is tried again, and
what still fails comes back named rather than raised: the stage decides what falls short.
"""

import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from cyclopts import Parameter
from pydantic import Field

from infra.config import Settings
from infra.errors import CarraraError, ConfigError, StorageError
from infra.progress import track
from infra.watchdog import Watchdog
from infra.watching.events import tell
from infra.watching.run import current

Item = TypeVar("Item")
Result = TypeVar("Result")

PROBE_TIMEOUT_S = 10.0

ITEMS_QUEUED_A_WORKER = 2
"""One being worked on and one waiting, so that a worker never idles for the driver's answer."""

LOOK_EVERY_S = 30.0
"""At what takes long."""

MAX_LOSSES = 10
"""Workers that may be lost at an item before it is held to be the reason."""


class Workers(Settings):
    """Where a stage's work runs and how much of it at once."""

    address: str | None = None
    """The Ray cluster to join ("auto": the one running here); none: $RAY_ADDRESS, else a new one on
    this machine for the length of the command."""
    num_workers: int | None = Field(default=None, ge=1)
    """Worker processes; none: as many as the cluster's CPUs and GPUs hold."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """CPU cores that each worker asks the cluster for."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that each worker asks the cluster for."""
    max_retries: int = Field(default=2, ge=0)
    """How often an item that failed is tried again; lost workers are replaced whatever it is."""
    local: Annotated[bool, Parameter(name=("--local", "--workers.local"), negative=())] = False
    """Run in this process, without Ray: for debugging."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or after the last try an error in one line."""

    item: Item
    result: Result | None
    error: str | None


def address_of(workers: Workers) -> str | None:
    """Of the running cluster to join; None: a new one on this machine."""
    return workers.address or os.environ.get("RAY_ADDRESS")


def connect(workers: Workers) -> None:
    """Join the cluster that `workers` names or start one here; once a process."""
    # Ray tells of its own coming change at every start; what it changes concerns GPUs only.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    address = address_of(workers)
    if ray.is_initialized() and not workers.address:
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address:
            try:
                _probe(address)
                context = ray.init(address=address, ignore_reinit_error=True, **quiet)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"workers.address {address!r}: no Ray cluster answers there; start one with "
                    "`ray start --head` or leave the address out"
                ) from error
            run = current()
            if run is not None and context.dashboard_url:
                run.dashboard = f"http://{context.dashboard_url}"
        else:
            # A token of its own, or Ray writes one to ~/.ray, where it changes what the user's
            # own `ray start` and `ray job submit` do from then on.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init(address="local", include_dashboard=False, **quiet)


def _probe(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT; Ray itself tries for eight minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()


def map_on_workers(
    make: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    workers: Workers,
    description: str,
    unit: str,
    size: Callable[[Item], int] = lambda _item: 1,
    is_tracked: bool = True,
) -> Generator[Outcome[Item, Result], None, None]:
    """Apply a worker's function to every item; outcomes come as they finish, in no set order.

    `size` says how many `unit`s of progress an item is worth. `make` and the items are pickled.
    A caller that follows its workers within their items says that it is not tracked here.
    """
    tracked = track(description, sum(map(size, items)), unit) if is_tracked else nullcontext()
    with tracked as bar:
        if workers.local:
            outcomes = _run_here(make, items)
        else:
            outcomes = _run_on_ray(make, items, workers, Watchdog(description))
        for outcome in outcomes:
            if bar is not None:
                bar.advance(size(outcome.item))
            _tell(description, outcome)
            yield outcome


def _tell(task: str, outcome: Outcome[Item, Result]) -> None:
    """To whoever watches: which item, by its shard's name where it is one or has one."""
    run = current()
    if run is not None and outcome.error is not None:
        run.num_failed += 1
    tell("item", None, task=task, shard=_name_of(outcome.item), error=outcome.error)


def _name_of(item: object) -> str:
    shard = getattr(item, "shard", item)
    return str(getattr(shard, "name", shard))


def _run_here(
    make: Callable[[], Callable[[Item], Result]], items: Sequence[Item]
) -> Generator[Outcome[Item, Result], None, None]:
    apply = make()
    # A worker of its own process ends with it; here what it holds open is its to close.
    with apply if isinstance(apply, AbstractContextManager) else nullcontext():
        for item in items:
            try:
                yield Outcome(item, apply(item), None)
            except CarraraError as error:
                yield Outcome(item, None, str(error))


def _run_on_ray(
    make: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    workers: Workers,
    watchdog: Watchdog,
) -> Generator[Outcome[Item, Result], None, None]:
    if not items:
        return
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    connect(workers)
    num_workers = min(workers.num_workers or num_that_fit(workers), len(items))
    crew = _Crew(make, items, workers)
    num_left, next_look = len(items), time.monotonic() + LOOK_EVERY_S
    try:
        for _ in range(num_workers):
            crew.hire()
        while num_left:
            answers, _ = ray.wait(list(crew.in_flight), num_returns=1, timeout=LOOK_EVERY_S)
            if time.monotonic() >= next_look:
                watchdog.look(crew.seconds_at_work())
                next_look = time.monotonic() + LOOK_EVERY_S
            if not answers:
                continue
            (done,) = answers
            attempt, actor = crew.answered(done)
            try:
                result = ray.get(done)
            except (RayActorError, OutOfMemoryError) as error:
                failed = crew.replace(actor, attempt, error)
                cause: BaseException = error
            except RayTaskError as error:
                assert attempt is not None
                failed, cause = crew.retry(actor, attempt, error.cause), error.cause
            else:
                if attempt is None:
                    crew.welcome(actor, result)
                else:
                    crew.give(actor)
                    num_left -= 1
                    yield Outcome(attempt.item, result, None)
                continue
            for lost in failed:
                num_left -= 1
                yield Outcome(lost.item, None, _one_line(cause))
    finally:
        crew.dismiss()


@dataclass
class _Attempt(Generic[Item]):
    """An item on its way through workers."""

    item: Item
    num_failures: int = 0
    num_losses: int = 0
    failed_on: set[str] = field(default_factory=set)
    """Nodes: it is tried again on another while there is one. A disk that is full fails whatever
    is tried there, and sooner than others succeed."""

    def is_final_failure(self, cause: BaseException, max_retries: int) -> bool:
        """After one more: what the user has to mend isn't tried again, what may pass is."""
        self.num_failures += 1
        is_users = isinstance(cause, CarraraError) and not isinstance(cause, StorageError)
        return is_users or self.num_failures > max_retries

    def is_final_loss(self) -> bool:
        """After one more: is it the item that costs the workers?"""
        self.num_losses += 1
        return self.num_losses > MAX_LOSSES


class _Crew(Generic[Item, Result]):
    """The actors at work, and what each was given.

    Ray restarts no actor and retries no task of itself: after many losses it was seen to wait for
    ever for a task that no worker had. A lost worker is replaced here.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Item], Result]],
        items: Sequence[Item],
        workers: Workers,
    ) -> None:
        import ray

        options = {"num_cpus": workers.cpus_per_worker, "num_gpus": workers.gpus_per_worker}
        self._remote = ray.remote(**options)(_Worker)
        self._make, self._max_retries = make, workers.max_retries
        self._waiting = [_Attempt(item) for item in reversed(items)]
        self._actors: list[Any] = []
        self._nodes: dict[Any, str] = {}
        """Where the actors are that are there."""
        self._begun: dict[Any, float] = {}
        """When the actors began with what they are at, by the monotonic clock."""
        self._num_stillborn = 0
        self.in_flight: dict[Any, tuple[_Attempt[Item] | None, Any]] = {}
        """By what Ray will answer; an attempt is None where an actor was asked if it is there."""

    def hire(self) -> None:
        """It is given items once it is there: one that waits for a machine keeps none waiting."""
        actor = self._remote.remote(self._make)
        self._actors.append(actor)
        self.in_flight[actor.ready.remote()] = (None, actor)

    def answered(self, ref: Any) -> tuple[_Attempt[Item] | None, Any]:
        """What was asked of whom; from now on the actor is at the next that it was given."""
        attempt, actor = self.in_flight.pop(ref)
        self._begun[actor] = time.monotonic()
        return attempt, actor

    def seconds_at_work(self) -> dict[str, float]:
        """By the names of the items that actors are at, as far as Ray has heard."""
        import ray

        first = {actor: ref for ref, (_, actor) in reversed(self.in_flight.items())}
        refs = [first[actor] for actor in self._nodes if actor in first]
        _, unanswered = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        now, found = time.monotonic(), {}
        for ref in unanswered:
            attempt, actor = self.in_flight[ref]
            assert attempt is not None
            found[_name_of(attempt.item)] = now - self._begun[actor]
        return found

    def welcome(self, actor: Any, node: str) -> None:
        self._nodes[actor] = node
        self.give(actor, ITEMS_QUEUED_A_WORKER)

    def give(self, actor: Any, num: int = 1) -> None:
        for _ in range(num):
            attempt = self._next_for(self._nodes[actor])
            if attempt is None:
                return
            self.in_flight[actor.apply.remote(attempt.item)] = (attempt, actor)

    def _next_for(self, node: str) -> _Attempt[Item] | None:
        nodes = set(self._nodes.values())
        for place in reversed(range(len(self._waiting))):
            failed_on = self._waiting[place].failed_on
            if node not in failed_on or nodes <= failed_on:
                return self._waiting.pop(place)
        return None

    def _give_idle(self) -> None:
        busy = {owner for _, owner in self.in_flight.values()}
        for idle in [actor for actor in self._nodes if actor not in busy]:
            self._begun[idle] = time.monotonic()
            self.give(idle)

    def retry(
        self, actor: Any, attempt: _Attempt[Item], cause: BaseException
    ) -> list[_Attempt[Item]]:
        """After its item failed; returns it if that was the last time."""
        is_final = attempt.is_final_failure(cause, self._max_retries)
        if not is_final:
            attempt.failed_on.add(self._nodes[actor])
            self._waiting.append(attempt)
        self.give(actor)
        self._give_idle()
        return [attempt] if is_final else []

    def replace(
        self, actor: Any, attempt: _Attempt[Item] | None, error: BaseException
    ) -> list[_Attempt[Item]]:
        """After its process or machine was lost; returns the items that are given up for it."""
        import ray

        self._num_stillborn += attempt is None
        if self._num_stillborn > MAX_LOSSES:
            raise error
        lost = [ref for ref, (_, owner) in self.in_flight.items() if owner == actor]
        given = [attempt, *(self.in_flight.pop(ref)[0] for ref in lost)]
        final: list[_Attempt[Item]] = []
        for one in given:
            if one is not None:
                (final if one.is_final_loss() else self._waiting).append(one)
        self._actors.remove(actor)
        self._nodes.pop(actor, None)
        self._begun.pop(actor, None)
        ray.kill(actor)
        self._give_idle()
        self.hire()
        return final

    def dismiss(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)


class _Worker(Generic[Item, Result]):
    """The Ray actor: makes the function once and applies it to item after item."""

    def __init__(self, make: Callable[[], Callable[[Item], Result]]) -> None:
        self._make = make
        self._function: Callable[[Item], Result] | None = None

    def ready(self) -> str:
        """Answered once the actor is there: on which node."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def apply(self, item: Item) -> Result:
        # Not in __init__: what fails there ends the actor and takes its message along.
        if self._function is None:
            self._function = self._make()
        return self._function(item)


def num_that_fit(workers: Workers) -> int:
    """How many such workers the whole cluster holds; raises ConfigError if not even one."""
    import ray

    resources = ray.cluster_resources()
    fits = [resources.get("CPU", 0.0) / workers.cpus_per_worker] if workers.cpus_per_worker else []
    if workers.gpus_per_worker:
        fits.append(resources.get("GPU", 0.0) / workers.gpus_per_worker)
    num = int(min(fits, default=1))
    if num < 1:
        has = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        raise ConfigError(
            f"workers: each asks for {workers.cpus_per_worker:g} CPUs and "
            f"{workers.gpus_per_worker:g} GPUs, more than the cluster has ({has}); ask for less, "
            "or say --workers.num-workers on a cluster that grows with the work"
        )
    return num


def _one_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, CarraraError) else f"{type(error).__name__}: {text}"
