"""Searches while another process appends, takes down and compacts.

What is promised: every answer is right for one state of the index that was whole on disk at some
time since the search before; no row whose tombstone stood when that state was taken up; and what is
answered with belongs together: vector, uid, caption and picture.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sample import sample_uid
from retrieval import index
from retrieval.search import Retriever, Snapshot

REPOSITORY = Path(__file__).parents[3]
NUM_THREADS = 4

WRITER = """
import importlib.util, sys
from infra.cluster import Workers
from pipeline import forget
from retrieval import index

spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
root = sys.argv[2]

def take_down(uid):
    forget.run(forget.Config(root=root, uid=(uid,), workers=Workers(local=True)))
    print("taken", uid, flush=True)

first = conftest.EmbeddedCorpus(root)
uids = sys.argv[3:]
for round, (one, other) in enumerate(zip(uids[::2], uids[1::2])):
    conftest.EmbeddedCorpus(root).grow(20)
    index.run(index.Config(root=root, num_queries=5))
    print("appended", flush=True)
    take_down(one)
    index.run(index.Config(root=root, num_queries=5, compact=True))
    print("compacted", flush=True)
    take_down(other)
"""


@dataclass
class Searches:
    """What threads that search have seen."""

    retriever: Retriever
    gone: set[str] = field(default_factory=set)
    """uids that a refresh has taken away."""
    is_over: threading.Event = field(default_factory=threading.Event)
    num_answers: int = 0
    states: set[int] = field(default_factory=set)

    def run(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not self.is_over.is_set():
            gone, state = set(self.gone), self.retriever.state
            self._check(state, gone, generator)
            self.num_answers += 1

    def _check(self, state: Snapshot, gone: set[str], generator: np.random.Generator) -> None:
        self.states.add(id(state))
        rows = np.arange(state.num_rows)
        stored = state.vectors(rows, "image")
        query = stored[generator.integers(state.num_rows)][None]
        allowed = None if generator.random() < 0.5 else generator.random(state.num_rows) < 0.5
        may = ~state.removed if allowed is None else allowed & ~state.removed
        k = int(generator.integers(1, 12))
        similarities, found = state.neighbours(query, k, "image", allowed)
        true = np.sort((stored @ query[0])[may])[::-1][:k]
        num = len(true)
        assert np.allclose(similarities[0, :num], true, atol=1e-5), "not the nearest"
        assert may[found[0, :num]].all(), "a row that may not be shown"
        hits = state.hits(found[0], similarities[0])
        images = state.read_images(hits[:2])
        for hit in hits:
            assert hit.uid == sample_uid(hit.url, hit.caption), "another's caption"
            assert hit.caption == f"sample {hit.key}", "another's key"
            assert hit.uid not in gone, "taken down"
            image = images.get(hit.uid, f"the picture {hit.key}".encode())
            assert image == f"the picture {hit.key}".encode(), "another's picture"


def test_every_answer_is_right_while_others_append_take_down_and_compact(
    tmp_path: Path, make_embedded: Callable[..., Any]
) -> None:
    corpus = make_embedded(tmp_path / "corpus", 30, 20)
    index.run(index.Config(root=corpus.root, num_queries=5))
    searches = Searches(Retriever.open(corpus.root))
    uids = [corpus.uids[row] for row in (3, 35, 12, 41)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        searching = [threads.submit(searches.run, seed) for seed in range(NUM_THREADS)]
        try:
            done = disturb(searches, corpus.root, uids)
        finally:
            searches.is_over.set()
    for one in searching:
        one.result()  # raises what it found wrong
    assert done == ["appended", "taken", "compacted", "taken"] * 2
    assert searches.num_answers > 50
    assert len(searches.states) >= 5
    state = searches.retriever.state
    assert state.num_rows - int(state.removed.sum()) == 30 + 20 + 20 + 20 - len(uids)
    assert len(state.manifest.segments) == 1


def disturb(searches: Searches, root: str, uids: list[str]) -> list[str]:
    """By another process, while this one refreshes; what was done, in its order."""
    command = [sys.executable, "-c", WRITER, str(Path(__file__).with_name("conftest.py"))]
    with subprocess.Popen(
        [*command, root, *uids],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as writer:
        refresher = threading.Thread(target=refresh_until, args=(searches, writer))
        refresher.start()
        assert writer.stdout is not None
        done = []
        for line in writer.stdout:
            done.append(line.split()[0])
            if line.startswith("taken"):
                searches.retriever.refresh()
                searches.gone.add(line.split()[1])
        errors = writer.stderr.read() if writer.stderr else ""
    refresher.join()
    searches.retriever.refresh()
    assert writer.returncode == 0, errors
    return done


def refresh_until(searches: Searches, writer: "subprocess.Popen[str]") -> None:
    """As a service does."""
    while writer.poll() is None:
        searches.retriever.refresh()
        time.sleep(0.02)
