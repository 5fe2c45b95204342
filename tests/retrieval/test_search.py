from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.cluster import Workers
from infra.errors import ConflictError, DamagedError, InputError
from pipeline.corpus import Manifest, iter_samples, read_manifest
from retrieval import embed, index
from retrieval.embedding.embeddings import embeddings_url, index_url
from retrieval.search import Retriever

HERE = Workers(local=True)


@pytest.fixture
def indexed_corpus(small_corpus: str, tiny_encoder: str) -> str:
    embed.run(embed.Config(root=small_corpus, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=small_corpus))
    return small_corpus


def image_rows(root: str, encoder: str) -> np.ndarray:
    folder = Path(embeddings_url(root, encoder), "img_emb")
    return np.concatenate([np.load(folder / f"img_emb_{i}.npy") for i in (0, 1)])


def test_each_picture_finds_its_own_sample_first(indexed_corpus: str, tiny_encoder: str) -> None:
    samples = [
        sample
        for shard in read_manifest(indexed_corpus).shards
        for sample in iter_samples(indexed_corpus, shard)
    ]
    retriever = Retriever.open(indexed_corpus)
    answers = retriever.search(image_rows(indexed_corpus, tiny_encoder), 3)
    for sample, hits in zip(samples, answers, strict=True):
        first = hits[0]
        assert (first.uid, first.key, first.caption) == (sample.uid, sample.key, sample.caption)
        assert first.similarity == pytest.approx(1, abs=2e-3)
        assert [hit.rank for hit in hits] == [1, 2, 3]
        assert hits[0].similarity >= hits[1].similarity >= hits[2].similarity


def test_there_are_exactly_k_hits_when_the_corpus_has_them(indexed_corpus: str) -> None:
    retriever = Retriever.open(indexed_corpus)
    query = np.ones((1, 32), np.float32)
    assert [len(retriever.search(query, k)[0]) for k in (1, 24, 100)] == [1, 24, 24]
    uids = {hit.uid for hit in retriever.search(query, 24, "text")[0]}
    assert len(uids) == 24


def test_pictures_come_from_the_shards(indexed_corpus: str) -> None:
    retriever = Retriever.open(indexed_corpus)
    hits = retriever.search(np.ones((1, 32), np.float32), 5)[0]
    images = retriever.read_images(hits)
    stored = {
        sample.uid: sample.image
        for shard in read_manifest(indexed_corpus).shards
        for sample in iter_samples(indexed_corpus, shard)
    }
    assert images == {hit.uid: stored[hit.uid] for hit in hits}


def test_an_index_of_another_state_of_the_corpus_is_refused(
    indexed_corpus: str, make_corpus: Callable[..., Manifest]
) -> None:
    make_corpus(indexed_corpus, num_samples=6)
    with pytest.raises(ConflictError, match="another state of the corpus"):
        Retriever.open(indexed_corpus)


def test_exchanged_metadata_is_an_error_not_a_wrong_caption(
    indexed_corpus: str, tiny_encoder: str
) -> None:
    folder = Path(index_url(indexed_corpus, tiny_encoder), "metadata")
    first, second = folder / "metadata_0.parquet", folder / "metadata_1.parquet"
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedError, match="metadata_0"):
        Retriever.open(indexed_corpus).search(np.ones((1, 32), np.float32), 24)


def test_a_truncated_index_is_damaged(indexed_corpus: str, tiny_encoder: str) -> None:
    path = Path(index_url(indexed_corpus, tiny_encoder), "image.index")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match="not a faiss index"):
        Retriever.open(indexed_corpus).search(np.ones((1, 32), np.float32), 1)


def test_no_index_names_the_command_to_run(small_corpus: str) -> None:
    with pytest.raises(InputError, match=f"carrara index {small_corpus}"):
        Retriever.open(small_corpus)


def test_vectors_of_another_width_are_refused(indexed_corpus: str) -> None:
    with pytest.raises(InputError, match=r"\[n, 32\]"):
        Retriever.open(indexed_corpus).search(np.ones((1, 8), np.float32), 1)
