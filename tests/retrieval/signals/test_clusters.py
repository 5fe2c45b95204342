"""Three groups of pictures far apart, and targets that lie in one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError
from pipeline import score, select
from pipeline.corpus import Manifest, iter_samples, read_columns, read_manifest, read_selection
from retrieval import embed
from tests.retrieval.signals.test_neighbours import DIM, NUM, normalized, write_embeddings

NUM_GROUPS = 3


def groups() -> tuple[np.ndarray, np.ndarray]:
    """Unit rows [NUM, DIM] about NUM_GROUPS centres [NUM_GROUPS, DIM], in turn."""
    random = np.random.default_rng(0)
    centres = np.eye(DIM)[:NUM_GROUPS]
    spread = 0.1 * normalized(random.normal(size=(NUM, DIM)))
    return normalized(centres[np.arange(NUM) % NUM_GROUPS] + spread), centres


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    root = str(tmp_path / "corpus")
    make_corpus(root, 4, NUM // 4)
    images, _ = groups()
    write_embeddings(root, images, images)
    return root


def run(root: str, targets: Path | str, **options: str) -> dict[str, list[Any]]:
    options = {"targets": str(targets), "num_clusters": str(NUM_GROUPS), **options}
    config = score.Config(
        root=root, signals=("image_based",), options=options, workers=Workers(local=True)
    )
    score.run(config)
    columns: dict[str, list[Any]] = read_columns(root, "image_based").to_pydict()
    return columns


def write_targets(folder: Path, rows: np.ndarray) -> Path:
    path = folder / "targets.npy"
    np.save(path, rows)
    return path


def test_clusters_of_the_targets_are_told_from_the_others(corpus: str, tmp_path: Path) -> None:
    _, centres = groups()
    columns = run(corpus, write_targets(tmp_path, 5 * centres[[1, 1]]))
    group = np.arange(NUM) % NUM_GROUPS
    clusters = np.array(columns["cluster"])
    assert len(set(zip(group.tolist(), clusters.tolist(), strict=True))) == NUM_GROUPS
    assert columns["num_targets_in_cluster"] == np.where(group == 1, 2, 0).tolist()
    assert min(columns["cluster_similarity"]) > 0.98


def test_target_similarity_is_the_cosine_of_the_nearest_target(corpus: str, tmp_path: Path) -> None:
    images, centres = groups()
    columns = run(corpus, write_targets(tmp_path, centres[[0, 2]]))
    expected = (images @ centres[[0, 2]].T).max(axis=1)
    assert columns["target_similarity"] == pytest.approx(expected, abs=2e-3)


def test_the_policy_keeps_the_clusters_of_the_targets(corpus: str, tmp_path: Path) -> None:
    _, centres = groups()
    run(corpus, write_targets(tmp_path, centres[:1]))
    select.run(select.Config(root=corpus, name="near", where="num_targets_in_cluster > 0"))
    keep = read_selection(corpus, "near")["keep"].to_pylist()
    assert keep == (np.arange(NUM) % NUM_GROUPS == 0).tolist()


def test_shards_scored_later_have_the_clusters_of_the_first(corpus: str, tmp_path: Path) -> None:
    _, centres = groups()
    targets = write_targets(tmp_path, centres[:1])
    whole = run(corpus, targets)
    folder = Path(corpus, "columns", "image_based")
    model = (folder / "model.npz").read_bytes()
    (folder / "00002.parquet").unlink()
    (folder / "manifest.json").unlink()
    assert run(corpus, targets) == whole
    assert (folder / "model.npz").read_bytes() == model


def test_no_more_is_sampled_than_memory_lasts_for(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row a cluster at least: then each is a centroid."""
    monkeypatch.setattr("retrieval.signals.clusters.MAX_SAMPLE_BYTES", 2 * DIM * 4)
    run(corpus, write_targets(tmp_path, np.eye(DIM)[:1]))
    with np.load(Path(corpus, "columns", "image_based", "model.npz")) as arrays:
        centroids = arrays["centroids"]
    images, _ = groups()
    assert (centroids @ images.T).max(axis=1) == pytest.approx(np.ones(NUM_GROUPS), abs=1e-3)


def test_other_targets_are_other_scores(corpus: str, tmp_path: Path) -> None:
    _, centres = groups()
    run(corpus, write_targets(tmp_path, centres[:1]))
    with pytest.raises(ConflictError, match=r"targets = .*--overwrite"):
        run(corpus, write_targets(tmp_path, centres[1:]))


def test_targets_may_be_a_folder_of_pictures(
    tmp_path: Path, small_corpus: str, tiny_encoder: str
) -> None:
    embed.run(embed.Config(root=small_corpus, encoder=tiny_encoder, workers=Workers(local=True)))
    first = next(iter_samples(small_corpus, read_manifest(small_corpus).shards[0]))
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(first.image)
    columns = run(small_corpus, folder)
    assert columns["target_similarity"][0] == pytest.approx(1, abs=2e-3)
    own = columns["cluster"][0]
    expected = [int(cluster == own) for cluster in columns["cluster"]]
    assert columns["num_targets_in_cluster"] == expected
    identity = json.loads(Path(small_corpus, "columns/image_based/manifest.json").read_text())
    assert identity["identity"]["num_clusters"] == NUM_GROUPS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": "nowhere"}, InputError, "nothing is there"),
        ({"targets": "nowhere.npy"}, InputError, "no such file"),
        ({"num_clusters": "1000"}, ConfigError, r"num_clusters 1000: .* 200 embedded"),
        ({"num_clusters": "few"}, ConfigError, "expected a whole number"),
    ],
)
def test_wrong_options_are_one_line(
    corpus: str, tmp_path: Path, options: dict[str, str], error: type[Exception], message: str
) -> None:
    good = {"targets": str(write_targets(tmp_path, np.eye(DIM)))}
    with pytest.raises(error, match=message):
        run(corpus, **(good | options))


def test_embeddings_of_another_width_are_refused(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(4, 3\); expected \[m, 64\]"):
        run(corpus, write_targets(tmp_path, np.ones((4, 3))))
