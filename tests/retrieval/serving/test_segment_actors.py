"""A service whose segments are held by actors on a real local Ray answers as one process does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from infra.cluster import Workers
from infra.errors import ConfigError
from pipeline.corpus import Manifest
from retrieval import embed, index
from retrieval.serving.indices import Indices
from retrieval.serving.settings import ServeSettings

PROGRAM = """
import json, os, sys, time
import ray
from fastapi.testclient import TestClient
from ray.cluster_utils import Cluster
from retrieval.serving.app import create_app
from retrieval.serving.settings import ServeSettings

root, question = sys.argv[1:]
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = nodes.address
app = create_app(ServeSettings(roots=(root,), segment_actors=2, max_wait_s=300))
with TestClient(app) as client:
    def ask():
        return client.post("/v1/search", json=json.loads(question))

    hits = ask().json()["hits"]
    actors = app.state.indices.by_name["emoji"].retriever.state.segments.actors
    ray.kill(actors[1], no_restart=False)
    statuses = []
    for _ in range(300):
        again = ask()
        statuses.append(again.status_code)
        if again.status_code == 200 and 503 in statuses:
            break
        time.sleep(0.1)
is_same = again.json().get("hits") == hits
print(json.dumps({"hits": hits, "num_actors": len(actors), "is_same": is_same, "met": statuses}))
ray.shutdown()
nodes.shutdown()
"""
# By an embedding: what an encoder rounds depends on its threads.
QUESTION = {"terms": [{"embedding": [1.0, -0.5, *[0.25] * 30]}], "k": 36}


def test_actors_hold_the_segments_and_answer_as_one_process_or_not_at_all(
    served_root: str,
    start_service: Callable[..., AbstractContextManager[httpx.Client]],
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
    tmp_path: Path,
) -> None:
    root = str(shutil.copytree(served_root, tmp_path / "emoji"))
    make_corpus(root, num_shards=3)  # a third shard: the index's second segment
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=Workers(local=True)))
    index.run(index.Config(root=root))
    environment = {
        # Else Ray writes a token of its own to the home folder.
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", "0" * 64),
        "RAY_raylet_start_wait_time_s": "120",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, root, json.dumps(QUESTION)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["num_actors"] == 2
    assert set(answer["met"]) == {200, 503}  # one was lost
    assert answer["is_same"]
    with start_service(root, max_wait_s=300) as client:
        here = client.post("/v1/search", json=QUESTION).json()["hits"]
    assert len(here) == 36
    assert [hit["uid"] for hit in answer["hits"]] == [hit["uid"] for hit in here]
    similarities = [hit["similarity"] for hit in here]
    assert [hit["similarity"] for hit in answer["hits"]] == pytest.approx(similarities, abs=1e-6)


def test_actors_without_a_cluster_are_a_mistake(
    served_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="no Ray cluster answers there"):
        Indices.open(ServeSettings(roots=(served_root,), segment_actors=1))
