"""Signals over embeddings of known geometry: captions are their pictures plus noise."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.made_corpus import write_made_manifest
from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError
from pipeline import score
from pipeline.corpus import Manifest, read_columns, read_manifest, read_rows
from retrieval import index
from retrieval.captions.mix import Mix
from retrieval.embedding.embeddings import (
    EmbeddingsManifest,
    Modality,
    Part,
    array_name,
    embeddings_url,
    metadata_name,
)

ENCODER = "known/geometry"
NUM_SHARDS, NUM_SAMPLES, DIM = 4, 50, 64
NUM = NUM_SHARDS * NUM_SAMPLES
HERE = Workers(local=True)


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    root = str(tmp_path / "corpus")
    make_corpus(root, NUM_SHARDS, NUM_SAMPLES)
    return root


def normalized(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def geometry(noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows [NUM, DIM] of pictures, and of captions near them."""
    random = np.random.default_rng(0)
    images = normalized(random.normal(size=(NUM, DIM)))
    return images, normalized(images + noise * normalized(random.normal(size=(NUM, DIM))))


def write_embeddings(
    root: str, images: np.ndarray, texts: np.ndarray, left_out: frozenset[str] = frozenset()
) -> None:
    """What `carrara embed` would leave, had an encoder given these rows."""
    corpus = read_manifest(root)
    folder = embeddings_url(root, ENCODER)
    arrays: dict[Modality, np.ndarray] = {"image": images, "text": texts}
    parts = []
    for i, shard in enumerate(corpus.shards):
        rows = read_rows(root, shard).slice(0, shard.num_samples)
        rows = rows.rename_columns(["image_path", *rows.column_names[1:]])
        is_kept = [key not in left_out for key in rows["image_path"].to_pylist()]
        number = str(i)
        contents: dict[str, bytes] = {}
        for modality, array in arrays.items():
            buffer = io.BytesIO()
            here = array[i * NUM_SAMPLES : (i + 1) * NUM_SAMPLES][np.array(is_kept)]
            np.save(buffer, here.astype(np.float16))
            contents[array_name(modality, number)] = buffer.getvalue()
        buffer = io.BytesIO()
        pq.write_table(rows.filter(is_kept), buffer)
        contents[metadata_name(number)] = buffer.getvalue()
        for name, data in contents.items():
            storage.publish_bytes(storage.join(folder, name), data)
        part = Part(
            shard=shard.name,
            file_number=number,
            num_rows=sum(is_kept),
            num_undecodable=len(is_kept) - sum(is_kept),
            dim=DIM,
            files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        )
        parts.append(part)
    manifest = EmbeddingsManifest(
        encoder=ENCODER,
        weights_digest="",
        precision="fp32",
        dim=DIM,
        corpus_digest=corpus.digest,
        counts={},
        parts=parts,
        files={name: digest for part in parts for name, digest in part.files.items()},
    )
    storage.publish_text(storage.join(folder, "manifest.json"), manifest.model_dump_json())


def scores(
    root: str, signal: str, column: str, kind: str | None = None, **options: str
) -> list[float | None]:
    if signal == "neighbours":
        index.run(index.Config(root=root, kind=kind))
    config = score.Config(root=root, signals=(signal,), options=options, workers=HERE)
    score.run(config)
    found: list[float | None] = read_columns(root, signal)[column].to_pylist()
    return found


def test_clip_similarity_is_the_cosine_of_the_pair(corpus: str) -> None:
    images, texts = geometry()
    write_embeddings(corpus, images, texts)
    expected = (images * texts).sum(axis=1)
    assert scores(corpus, "clip", "clip_similarity") == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("column", ["knn_rank_image", "knn_rank_text"])
def test_rank_counts_what_is_nearer_than_its_own(corpus: str, column: str) -> None:
    images, texts = geometry(noise=3.0)
    write_embeddings(corpus, images, texts)
    images, texts = images.astype(np.float16), texts.astype(np.float16)
    similarities = texts.astype(np.float64) @ images.T.astype(np.float64)
    if column == "knn_rank_text":
        similarities = similarities.T
    own = np.diag(similarities)[:, None]
    expected = (similarities > own + 1e-6).sum(axis=1)
    assert expected.max() > 20
    assert scores(corpus, "neighbours", column) == expected.tolist()


def test_ranks_are_cut_off_at_k_max(corpus: str) -> None:
    images, texts = geometry(noise=3.0)
    write_embeddings(corpus, images, texts)
    uncut = scores(corpus, "neighbours", "knn_rank_image")
    storage.remove(storage.join(corpus, "columns"))
    cut = scores(corpus, "neighbours", "knn_rank_image", k_max="5")
    assert cut == [min(rank or 0, 5) for rank in uncut]
    assert max(rank or 0 for rank in uncut) > 5


def test_swapped_captions_have_large_ranks_and_the_others_small_ones(corpus: str) -> None:
    images, texts = geometry()
    swapped = np.arange(0, 60, 3)
    texts[swapped] = texts[np.roll(swapped, 1)]
    write_embeddings(corpus, images, texts)
    ranks = np.array(scores(corpus, "neighbours", "knn_rank_image"))
    is_swapped = np.isin(np.arange(NUM), swapped)
    # A strange picture's rank is anywhere between 0 and NUM with equal chance.
    assert (ranks[is_swapped] > 0).all()
    assert np.median(ranks[is_swapped]) > NUM / 4
    assert (ranks[~is_swapped] == 0).all()


def test_copies_of_the_own_picture_do_not_count_against_it(corpus: str) -> None:
    """Twenty encodings of one picture, all nearer to the first one's caption than it is."""
    images, texts = geometry()
    toward = normalized(texts[0] - images[0])
    images[1:21] = normalized(images[0] + np.linspace(0.01, 0.05, 20)[:, None] * toward)
    write_embeddings(corpus, images, texts)
    assert (images[1:21] @ texts[0] > images[0] @ texts[0] + 1e-3).all()
    assert scores(corpus, "neighbours", "knn_rank_image")[0] == 0


def test_a_graph_index_gives_nearly_the_exact_ranks(corpus: str) -> None:
    images, texts = geometry(noise=2.0)
    write_embeddings(corpus, images, texts)
    exact = np.array(scores(corpus, "neighbours", "knn_rank_image"))
    for folder in ("columns", "index"):
        storage.remove(storage.join(corpus, folder))
    near = np.array(scores(corpus, "neighbours", "knn_rank_image", kind="HNSW32"))
    assert (exact == near).mean() > 0.95


def test_samples_without_an_embedding_are_null_and_keep_their_place(corpus: str) -> None:
    images, texts = geometry()
    write_embeddings(corpus, images, texts, left_out=frozenset({"000010007"}))
    similarities = scores(corpus, "clip", "clip_similarity")
    ranks = scores(corpus, "neighbours", "knn_rank_text")
    assert len(similarities) == len(ranks) == NUM
    nulls = [i for i in range(NUM) if similarities[i] is None]
    assert nulls == [i for i in range(NUM) if ranks[i] is None] == [NUM_SAMPLES + 7]
    rest = [i for i in range(NUM) if i not in nulls]
    expected = (images * texts).sum(axis=1)[rest]
    assert [similarities[i] for i in rest] == pytest.approx(expected, abs=2e-3)


def test_a_shard_without_an_embedding_that_was_appended_scores_null(corpus: str) -> None:
    images, texts = geometry()
    shards = read_manifest(corpus).shards
    write_made_manifest(corpus, shards[:-1])
    write_embeddings(corpus, images, texts)
    index.run(index.Config(root=corpus))
    write_made_manifest(corpus, shards)
    last = frozenset(f"{NUM_SHARDS - 1:05d}{i:04d}" for i in range(NUM_SAMPLES))
    write_embeddings(corpus, images, texts, left_out=last)
    ranks = scores(corpus, "neighbours", "knn_rank_image")
    assert [rank is None for rank in ranks] == [i >= NUM - NUM_SAMPLES for i in range(NUM)]


def test_an_index_of_other_embeddings_is_refused(corpus: str) -> None:
    images, texts = geometry()
    write_embeddings(corpus, images, texts)
    index.run(index.Config(root=corpus))
    write_embeddings(corpus, texts, images)
    config = score.Config(root=corpus, signals=("neighbours",), workers=HERE)
    with pytest.raises(ConflictError, match="other embeddings"):
        score.run(config)


def test_an_option_that_is_no_number_is_the_users_error(corpus: str) -> None:
    write_embeddings(corpus, *geometry())
    with pytest.raises(ConfigError, match="k_max 'many'"):
        scores(corpus, "neighbours", "knn_rank_image", k_max="many")


# What one pass over both indices gives


def swapped_geometry() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, captions, and which captions are another's: every fifth."""
    images, texts = geometry()
    swapped = np.arange(0, NUM, 5)
    texts[swapped] = texts[np.roll(swapped, 1)]
    return images, texts, np.isin(np.arange(NUM), swapped)


def score_all(root: str, **options: str) -> pa.Table:
    index.run(index.Config(root=root))
    score.run(score.Config(root=root, signals=("neighbours",), options=options, workers=HERE))
    return read_columns(root, "neighbours")


def test_every_score_tells_swapped_captions(corpus: str) -> None:
    images, texts, is_swapped = swapped_geometry()
    write_embeddings(corpus, images, texts)
    columns = score_all(corpus)
    for name, higher_fits in (("neg_clip_loss", 1), ("lemon_distance", -1), ("mismatch", -1)):
        fits = higher_fits * np.array(columns[name].to_pylist())
        assert np.quantile(fits[is_swapped], 0.9) < np.quantile(fits[~is_swapped], 0.1), name
    mismatch = np.array(columns["mismatch"].to_pylist())
    assert (mismatch[is_swapped] > 0.5).mean() > 0.8  # of 40
    assert (mismatch[~is_swapped] > 0.5).mean() < 0.05


def test_the_columns_say_which_encoder_and_which_mix(corpus: str) -> None:
    write_embeddings(corpus, *geometry())
    score_all(corpus)
    folder = Path(corpus, "columns", "neighbours")
    mix = Mix.model_validate_json((folder / "mix.json").read_text())
    for path in sorted(folder.glob("*.parquet")):
        schema = pq.read_schema(path)
        assert schema.metadata[b"carrara.mix"] == mix.digest.encode()
        assert json.loads(schema.field("mismatch").metadata[b"carrara.models"]) == {ENCODER: ""}
    assert mix.num_pairs == NUM


def test_a_run_that_was_killed_goes_on_with_the_same_mix(corpus: str) -> None:
    write_embeddings(corpus, *swapped_geometry()[:2])
    score_all(corpus)
    folder = Path(corpus, "columns", "neighbours")
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name in ("00001.parquet", "manifest.json"):
        (folder / name).unlink()
    score_all(corpus)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == whole


@pytest.fixture
def on_ray() -> Iterator[Workers]:
    import ray

    yield Workers(num_workers=2)
    ray.shutdown()


def test_ray_workers_write_the_same_bytes(corpus: str, on_ray: Workers) -> None:
    write_embeddings(corpus, *swapped_geometry()[:2])
    score_all(corpus)
    folder = Path(corpus, "columns", "neighbours")
    alone = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    storage.remove(str(folder))
    score.run(score.Config(root=corpus, signals=("neighbours",), workers=on_ray))
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == alone


def test_normsim_is_the_likeness_to_the_examples(corpus: str, tmp_path: Path) -> None:
    images, texts = geometry()
    write_embeddings(corpus, images, texts)
    np.save(tmp_path / "examples.npy", images[[3, 5]])
    columns = score_all(corpus, examples=str(tmp_path / "examples.npy"))
    similarities = images @ images[[3, 5]].T
    found = columns["normsim_inf"].to_pylist()
    assert found == pytest.approx(similarities.max(axis=1), abs=2e-3)
    expected = np.sqrt((similarities**2).mean(axis=1))
    assert columns["normsim_2"].to_pylist() == pytest.approx(expected, abs=2e-3)
    np.save(tmp_path / "examples.npy", images[[3, 6]])
    with pytest.raises(ConflictError, match=r"examples = .*--overwrite"):
        score_all(corpus, examples=str(tmp_path / "examples.npy"))


def test_examples_may_be_a_folder_of_embeddings(corpus: str) -> None:
    images, texts = geometry()
    write_embeddings(corpus, images, texts)
    columns = score_all(corpus, examples=embeddings_url(corpus, ENCODER))
    assert columns["normsim_inf"].to_pylist() == pytest.approx(np.ones(NUM), abs=2e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": "-1"}, ConfigError, "temperature '-1': expected a number above 0"),
        ({"temperature": "warm"}, ConfigError, "temperature 'warm'"),
        ({"examples": "nowhere"}, InputError, "examples .*nowhere: nothing is there"),
        ({"examples": "nowhere.npy"}, InputError, "examples .*nowhere.npy: no such file"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    corpus: str, options: dict[str, str], error: type[Exception], message: str
) -> None:
    write_embeddings(corpus, *geometry())
    with pytest.raises(error, match=message):
        score_all(corpus, **options)


def test_examples_by_another_encoder_are_refused(corpus: str, tmp_path: Path) -> None:
    write_embeddings(corpus, *geometry())
    manifest = EmbeddingsManifest(
        encoder="another/one",
        weights_digest="",
        precision="fp32",
        dim=DIM,
        corpus_digest="",
        counts={},
        parts=[],
        files={},
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(InputError, match="by 'another/one'; expected some by 'known/geometry'"):
        score_all(corpus, examples=str(tmp_path))
