"""Is this machine, this bucket, this cluster ready?

    carrara doctor [ROOT]          a line a check, each with what to do; exit 1 where one is broken
    infra/submit.sh doctor ROOT    the same on every node of a cluster
    carrara doctor --drill         a rehearsal of faults on a cluster made for it, see infra/drill/

Reads   the machine, its network, ROOT
Writes  a few files under ROOT, and removes them

Without a cluster to join (workers.address, $RAY_ADDRESS) no Ray is started.
"""

import importlib
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from cyclopts import Parameter

from infra.checks.finding import Check, Finding, Subject, broken, ok, warning
from infra.checks.versions import apart, versions
from infra.cluster import Workers, address_of, connect
from infra.config import EXECUTION_ONLY, POSITIONAL, Address, Place, StageConfig
from infra.errors import ConfigError
from infra.progress import track
from infra.summary import Stopwatch, Summary

NODE_TIMEOUT_S = 300.0
"""For all checks of one node, its worker's start included."""

OF_SEVERAL_NODES = "infra.checks.hostname:check"
"""A check that one machine alone has no need of."""

Floors = Mapping[str, Sequence[str]]
"""Each floor's checks as "module:function", the lowest floor first."""

Examined = tuple[list[Finding], dict[str, str]]
"""What was found on a machine, and its versions."""


class Config(StageConfig):
    """Look at what commands will stand on."""

    root: Annotated[Place | None, POSITIONAL] = None
    """A folder or bucket URL to try: read, write, list, parts, rename, speed."""
    encoder: str = "Carrara-S/emoji_clipart"
    """The encoder whose weights must be at hand or reachable."""
    egress_url: Address = "https://speed.cloudflare.com/__down?bytes=10000000"
    """What is fetched to measure the way out: a file of some MB."""
    drill: bool = False
    """Rehearse faults on three Ray nodes made on this machine, with an S3 server between them."""
    drill_small: bool = False
    """The drill in minutes: every fault and every job once."""
    drill_folder: Annotated[Place | None, EXECUTION_ONLY] = None
    """Where the drill keeps its logs; none: a temporary folder, removed if all went well."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """With workers.address: look at every node of that cluster."""


NOTHING_SAID = Config()


def run(
    config: Config = NOTHING_SAID,
    *,
    checks: Annotated[Floors, Parameter(parse=False)] = MappingProxyType({}),
) -> Summary:
    """`checks` come from carrara.py's table: this floor knows none of those above."""
    if config.drill or config.drill_small:
        from infra.drill.drill import rehearse

        return rehearse(small=config.drill_small, folder=config.drill_folder)
    names = [name for floor in checks.values() for name in floor]
    subject = Subject(config.root, config.encoder, config.egress_url)
    with Stopwatch() as watch:
        if address_of(config.workers) is None or config.workers.local:
            nodes = {"": examine(names, subject)}
        else:
            nodes = _examine_nodes(config.workers, names, subject)
    rows = [_row(node, one) for node, (found, _) in nodes.items() for one in found]
    counts = Counter(str(row[""]) for row in rows)
    return Summary(
        stage="doctor",
        num_in=len(rows),
        num_out=counts["ok"],
        unit="checks",
        counts=dict(counts),
        seconds=watch.seconds,
        details={"versions": {node: found for node, (_, found) in nodes.items()}},
        table=rows,
        shortfall=_shortfall(rows),
    )


def _row(node: str, finding: Finding) -> dict[str, object]:
    row: dict[str, object] = {"node": node} if node else {}
    row |= {"check": finding.check, "": finding.state, "found": finding.found}
    return row | {"what to do": finding.advice}


def _shortfall(rows: Sequence[Mapping[str, object]]) -> str:
    named = [str(row["check"]) for row in rows if row[""] == "broken"]
    if not named:
        return ""
    return f"doctor: {len(named)} of {len(rows)} checks: broken: {', '.join(named)}; see what to do"


def examine(names: Sequence[str], subject: Subject) -> Examined:
    """All checks, on this machine."""
    findings: list[Finding] = []
    with track("doctor", len(names), "groups of checks") as bar:
        for name in names:
            findings += load(name)(subject)
            bar.advance(1, note=name.partition(":")[0])
    return findings, versions()


def load(name: str) -> Check:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    check: Check = getattr(importlib.import_module(module), function)
    return check


def _examine_nodes(workers: Workers, names: Sequence[str], subject: Subject) -> dict[str, Examined]:
    """Every node that is alive, by its name, and first what is to say of them all."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect(workers)
    all_nodes = ray.nodes()
    alive = [node for node in all_nodes if node["Alive"]]
    if not alive:
        raise ConfigError(f"workers.address {workers.address!r}: a cluster without any node")
    if len(alive) > 1:
        names = [*names, OF_SEVERAL_NODES]
    asked = {
        name: ray.remote(examine)
        .options(
            num_cpus=0,
            num_gpus=min(1, node["Resources"].get("GPU", 0)),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(names, subject)
        for name, node in _named(alive).items()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    found = {name: _answer(answer) for name, answer in asked.items()}
    together = list(_cluster(all_nodes, {name: theirs for name, (_, theirs) in found.items()}))
    return {"all": (together, versions())} | found


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _named(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By their names; several on one machine by their ids as well."""
    num = Counter(map(_name, nodes))
    return {
        _name(node) if num[_name(node)] == 1 else f"{_name(node)} {node['NodeID'][:6]}": node
        for node in nodes
    }


def _answer(answer: Any) -> Examined:
    import ray

    try:
        examined: Examined = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        said = f"no answer in {NODE_TIMEOUT_S:.0f} s"
        advice = "its GPUs are all taken, or it can't start workers: look at Ray's dashboard"
        return [warning("node", said, advice)], {}
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[0]
        return [broken("node", said, "look at its raylet.log: workers end there")], {}
    return examined


def _cluster(
    nodes: Sequence[Mapping[str, Any]], theirs: Mapping[str, dict[str, str]]
) -> Iterator[Finding]:
    """What concerns the nodes together: how many are there, and are they alike?"""
    dead = [_name(node) for node in nodes if not node["Alive"]]
    resources = Counter[str]()
    for node in nodes:
        if node["Alive"]:
            resources.update({kind: int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU")})
    found = f"{len(nodes) - len(dead)} nodes, {resources['CPU']} CPUs, {resources['GPU']} GPUs"
    if dead:
        advice = "nothing, if you took them away; else look at their raylet.log"
        yield warning("cluster", f"{found}; lost so far: {', '.join(dead)}", advice)
    else:
        yield ok("cluster", found)
    mine = versions()
    unlike = apart(theirs, mine, socket.gethostname())
    if unlike:
        advice = "one image for all nodes: Ray refuses other versions, arithmetic may differ"
        yield broken("alike", "; ".join(unlike), advice)
    else:
        yield ok("alike", ", ".join(f"{name} {version}" for name, version in mine.items()))
