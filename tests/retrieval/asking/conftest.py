"""Eighty emoji by the encoder that ships: near copies, shared URLs, and scores of two signals."""

import shutil
from collections.abc import Callable

import pyarrow as pa
import pytest

from benchmarks.made_corpus import write_made_signal
from infra.cluster import Workers
from pipeline.corpus import Manifest, iter_samples, read_manifest, write_columns
from retrieval import embed, index
from retrieval.asking.asker import Asker
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.search import Retriever

NUM = 80
SAME_URLS = {number: f"https://example.org/{number % 5}.png" for number in range(0, NUM, 4)}


@pytest.fixture(scope="session")
def make_emoji(make_corpus: Callable[..., Manifest]) -> Callable[[str], str]:
    """An indexed corpus at the place given; no signal is scored on it."""

    def make(root: str) -> str:
        make_corpus(root, num_shards=2, num_samples=NUM // 2, urls=SAME_URLS)
        workers = Workers(local=True)
        embed.run(embed.Config(root=root, encoder=EMBEDDED_ENCODER, workers=workers))
        index.run(index.Config(root=root))
        return root

    return make


@pytest.fixture(scope="session")
def plain_root(make_emoji: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_emoji(str(tmp_path_factory.mktemp("plain") / "emoji"))


@pytest.fixture(scope="session")
def emoji_root(plain_root: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with scores: every third is not safe, one could not be scored; ratings 2, 5, 8."""
    root = tmp_path_factory.mktemp("scored") / "emoji"
    shutil.copytree(plain_root, root)
    nudity = [None if n == 7 else 0.1 if n % 3 else 0.9 for n in range(NUM)]
    write_signal(str(root), "safety", "nudity_exposed", nudity)
    write_signal(str(root), "aesthetic", "aesthetic_score", [2.1 + n % 3 * 3 for n in range(NUM)])
    return str(root)


@pytest.fixture(scope="session")
def score() -> Callable[..., None]:
    """score(root, signal, column, values) as `carrara score` writes it, in the samples' order."""
    return write_signal


def write_signal(root: str, signal: str, column: str, values: list[float | None]) -> None:
    manifest = read_manifest(root)
    rest = iter(values)
    for shard in manifest.shards:
        uids = [sample.uid for sample in iter_samples(root, shard)]
        scores = pa.array([next(rest) for _ in uids], pa.float32())
        write_columns(root, signal, shard.name, pa.table({"uid": uids, column: scores}))
    write_made_signal(root, signal)


@pytest.fixture(scope="session")
def asker(emoji_root: str) -> Asker:
    return Asker(Retriever.open(emoji_root))
