"""Segments held by actors on Ray give the answers of one process, or a named error."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.takedown.tombstones import Tombstone, add_tombstones
from retrieval import index
from retrieval.embedding.embeddings import MODALITIES
from retrieval.search import Retriever

PROGRAM = """
import json, shutil, sys, time
import numpy as np, ray
from ray.cluster_utils import Cluster
from infra.cluster import Workers
from infra.errors import ShortfallError
from retrieval.live.remote import RemoteSegments
from retrieval.search import Retriever

folder, names = sys.argv[1], sys.argv[2:]
queries, allowed = np.load(f"{folder}/queries.npy"), np.load(f"{folder}/allowed.npy")
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    nodes.add_node(num_cpus=1)
workers, patience_s = Workers(address=nodes.address), [300.0]

def remote(*index):
    return RemoteSegments(*index, workers, 2, *patience_s)

def rows(among, k):
    retriever.state.max_exact = dict.fromkeys(retriever.state.max_exact, 0)
    num = retriever.num_rows
    among = None if among is None else among[:num]
    found = [retriever.neighbours(queries, k, one, among)[1] for one in ("image", "text")]
    return [one.tolist() for one in found]

def answered():
    return [rows(among, k) for among in (None, allowed) for k in (12, retriever.num_rows)]

answers = {}
for name in names:
    retriever = None  # its actors give their cores back
    retriever = Retriever.open(f"{folder}/{name}", None, remote)
    answers[name] = answered()

ray.kill(retriever.state.segments.actors[1], no_restart=False)
errors = []
for _ in range(300):
    try:
        answers["again"] = answered()
        if errors:
            break
    except ShortfallError as error:
        errors.append(str(error))
    time.sleep(0.1)

shutil.copytree(f"{folder}/grown", f"{folder}/{names[-1]}", dirs_exist_ok=True)
patience_s[:] = [3.0]
try:
    retriever.refresh()
except ShortfallError as error:
    answers["no cores"] = str(error)
answers["meanwhile"] = answered()
nodes.add_node(num_cpus=2)
patience_s[:] = [300.0]
answers["is taken up"] = retriever.refresh()
answers["grown"] = answered()
print(json.dumps(answers | {"errors": errors}))
ray.shutdown()
nodes.shutdown()
"""

KINDS = {"flat": "Flat", "lists": "IVF4,PQ8x4fs,Refine(SQ8)", "graph": "HNSW2"}
"""The graph does not reach all of its rows: what it leaves open is compared with by who asks."""


def test_actors_on_two_nodes_answer_as_one_process(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    """One of them is lost in between: that is an error, by name, and then right again. Then the
    index grows, while there are no cores for it, and at last there are."""
    for name, kind in KINDS.items():
        corpus = grown(make_embedded(tmp_path / name), kind, 60, 50, 40)
        add_tombstones(corpus.root, [Tombstone("uid", corpus.uids[50], None, "", "")])
    later = Path(shutil.copytree(tmp_path / "graph", tmp_path / "grown"))
    grown(make_embedded(later), KINDS["graph"], 10)
    add_tombstones(str(later), [Tombstone("uid", corpus.uids[3], None, "", "")])
    queries, allowed = corpus.image[::7].astype(np.float32), np.arange(160) % 3 > 0
    for name, array in (("queries", queries), ("allowed", allowed)):
        np.save(tmp_path / f"{name}.npy", array)
    environment = {
        # Else Ray writes a token of its own to the home folder.
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", "0" * 64),
        "RAY_raylet_start_wait_time_s": "120",
    }
    expected = {name: answered(tmp_path / name, queries, allowed) for name in (*KINDS, "grown")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *KINDS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for name, rows in expected.items():
        assert answers[name] == rows, name
    assert answers["again"] == expected["graph"]
    assert "no answer from the actor that holds segments" in answers["errors"][0]
    assert "2 of 2 actors for its segments had not begun after 3 s" in answers["no cores"]
    assert "together they take 2 cores" in answers["no cores"]
    assert 3 in rows_of(answers["again"])
    assert 3 not in rows_of(answers["meanwhile"])  # taken down, also in the index that was there
    assert rows_of(answers["meanwhile"]) < set(range(150))
    assert answers["is taken up"]


def grown(corpus: Any, kind: str, *sizes: int) -> Any:
    """By a segment of each size."""
    for num in sizes:
        corpus.grow(num)
        index.run(index.Config(root=corpus.root, kind=kind, num_queries=5))
    return corpus


def answered(root: Path, queries: np.ndarray, allowed: np.ndarray) -> list[Any]:
    """What the program's function of that name gives, by one process."""
    retriever = Retriever.open(str(root))
    state, num = retriever.state, retriever.num_rows
    state.max_exact = dict.fromkeys(state.max_exact, 0)
    return [
        [state.neighbours(queries, k, one, among)[1].tolist() for one in MODALITIES]
        for among in (None, allowed[:num])
        for k in (12, num)
    ]


def rows_of(answers: list[Any]) -> set[int]:
    """All that any query was answered with."""
    return {row for both in answers for found in both for rows in found for row in rows if row >= 0}
