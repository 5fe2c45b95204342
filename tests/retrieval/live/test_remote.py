"""Segments held by actors on Ray give the answers of one process, or a named error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.takedown.tombstones import Tombstone, add_tombstones
from retrieval import index
from retrieval.search import Retriever

PROGRAM = """
import json, sys, time
import numpy as np, ray
from ray.cluster_utils import Cluster
from infra.cluster import Workers
from infra.errors import ShortfallError
from retrieval.live.remote import RemoteSegments
from retrieval.search import Retriever

root, queries, allowed = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    nodes.add_node(num_cpus=1)
remote = RemoteSegments.opener(Workers(address=nodes.address), num_actors=2)
retriever = Retriever.open(root, None, remote)

def rows(allowed):
    found = [retriever.neighbours(queries, 12, one, allowed)[1] for one in ("image", "text")]
    return [one.tolist() for one in found]

answers = {"all": rows(None), "allowed": rows(allowed)}
ray.kill(retriever.state.segments.actors[1], no_restart=False)
errors = []
for _ in range(300):
    try:
        answers["again"] = rows(None)
        if errors:
            break
    except ShortfallError as error:
        errors.append(str(error))
    time.sleep(0.1)
print(json.dumps(answers | {"errors": errors}))
ray.shutdown()
nodes.shutdown()
"""


def test_actors_on_two_nodes_answer_as_one_process(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    """One of them is lost in between: that is an error, by name, and then right again."""
    corpus = make_embedded(tmp_path / "corpus")
    for num in (40, 30, 20):
        corpus.grow(num)
        index.run(index.Config(root=corpus.root, num_queries=5))
    add_tombstones(corpus.root, [Tombstone("uid", corpus.uids[50], None, "", "")])
    queries, allowed = corpus.image[::7].astype(np.float32), np.arange(90) % 3 > 0
    for name, array in (("queries", queries), ("allowed", allowed)):
        np.save(tmp_path / f"{name}.npy", array)
    arguments = [corpus.root, str(tmp_path / "queries.npy"), str(tmp_path / "allowed.npy")]
    environment = {
        # Else Ray writes a token of its own to the home folder.
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", "0" * 64),
        "RAY_raylet_start_wait_time_s": "120",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    here = Retriever.open(corpus.root)

    def rows(among: np.ndarray | None) -> list[Any]:
        found = [here.neighbours(queries, 12, one, among)[1] for one in ("image", "text")]
        return [one.tolist() for one in found]

    assert answers["all"] == rows(None)
    assert answers["allowed"] == rows(allowed)
    assert answers["again"] == rows(None)
    assert "no answer from the actor that holds segments" in answers["errors"][0]
