import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.clip_like import ENCODER, ClipLike, write_corpus
from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError
from infra.records import read_record
from infra.summary import Summary
from retrieval import embed, index
from retrieval.embedding.embeddings import index_url
from retrieval.indexing.manifest import IndexManifest
from retrieval.indexing.segments import read_groups
from retrieval.search import Retriever

HERE = Workers(local=True)
REPOSITORY = Path(__file__).parents[2]
VECTORS = ClipLike(num_rows=3000, rows_a_part=750, dim=32)


@pytest.fixture
def embedded_corpus(small_corpus: str, tiny_encoder: str) -> str:
    embed.run(embed.Config(root=small_corpus, encoder=tiny_encoder, workers=HERE))
    return small_corpus


def parts(*numbers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (VECTORS.part(number) for number in numbers)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Three parts of vectors; there is a fourth to append."""
    write_corpus(tmp_path / "corpus", parts(0, 1, 2))
    return str(tmp_path / "corpus")


def run(root: str, **settings: Any) -> Summary:
    return index.run(index.Config(root=root, **settings))


def manifest_of(root: str, encoder: str = ENCODER) -> IndexManifest:
    return read_record(storage.join(index_url(root, encoder), "index.json"), IndexManifest)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): storage.sha256(str(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_exact_index_has_recall_one_for_words_and_for_pictures(embedded_corpus: str) -> None:
    summary = run(embedded_corpus)
    assert summary.details["kinds"] == [{"image": "Flat", "text": "Flat"}]
    measured = summary.details["recall_at_10"]
    assert measured == {
        "image": {"image queries": 1.0, "text queries": 1.0},
        "text": {"image queries": 1.0, "text queries": 1.0},
    }


def test_layout_is_clip_retrievals_and_every_file_is_digested(
    embedded_corpus: str, tiny_encoder: str
) -> None:
    run(embedded_corpus)
    folder = Path(index_url(embedded_corpus, tiny_encoder))
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    files = {"image.index", "text.index", "groups.npy"} | {
        f"metadata/metadata_{i}.parquet" for i in (0, 1)
    }
    assert names == files | {"index.json", "stamp.json"}
    recorded = json.loads((folder / "index.json").read_text())["files"]
    assert recorded == {name: storage.sha256(str(folder / name)) for name in files}


def test_a_second_run_builds_nothing(corpus: str) -> None:
    run(corpus)
    path = Path(index_url(corpus, ENCODER), "image.index")
    before = path.stat().st_mtime_ns
    run(corpus)
    run(corpus, compact=True)
    assert path.stat().st_mtime_ns == before


def test_another_kind_conflicts_until_told_to_overwrite(corpus: str) -> None:
    run(corpus)
    with pytest.raises(ConflictError, match="kind = None, now 'HNSW32'"):
        run(corpus, kind="HNSW32")
    summary = run(corpus, kind="HNSW32", overwrite=True)
    assert summary.details["kinds"] == [{"image": "HNSW32", "text": "HNSW32"}]


@pytest.mark.parametrize("kind", ["no such kind", "IVF10000,Flat"])
def test_a_kind_that_can_not_be_built_is_an_error_and_leaves_the_index(
    corpus: str, kind: str
) -> None:
    run(corpus)
    path = Path(index_url(corpus, ENCODER), "image.index")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"kind '{kind}'") as raised:
        run(corpus, kind=kind, overwrite=True)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


def test_a_kind_that_needs_more_rows_to_train_on_is_an_error(embedded_corpus: str) -> None:
    with pytest.raises(ConfigError, match=r"kind 'PQ8x8': .*training points"):
        run(embedded_corpus, kind="PQ8x8")


def test_no_embeddings_name_the_command_to_run(small_corpus: str) -> None:
    with pytest.raises(InputError, match="carrara embed"):
        run(small_corpus)


@pytest.mark.parametrize("kind", ["IVF16,PQ8x4fs,Refine(SQfp16)", "HNSW16,SQfp16"])
def test_the_same_embeddings_give_the_same_bytes_on_any_number_of_threads(
    tmp_path: Path, kind: str
) -> None:
    found = []
    for num_threads in (1, 3):
        root = tmp_path / str(num_threads)
        write_corpus(root, parts(0, 1))
        command = ["-m", "carrara", "index", str(root), "--kind", kind]
        subprocess.run(
            [sys.executable, *command],
            check=True,
            cwd=REPOSITORY,
            env={"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
        )
        found.append(digests(Path(index_url(str(root), ENCODER))))
    assert found[0] == found[1]


# Appending and compacting


def test_new_parts_become_a_segment_and_old_files_stay_as_they_are(corpus: str) -> None:
    run(corpus)
    folder = Path(index_url(corpus, ENCODER))
    before = digests(folder)
    write_corpus(Path(corpus), parts(0, 1, 2, 3))
    assert run(corpus).num_out == 3000
    after = digests(folder)
    assert {name: after[name] for name in before if name != "index.json"} == {
        name: digest for name, digest in before.items() if name != "index.json"
    }
    added = after.keys() - before.keys()
    assert added == {
        "segments/0001/image.index",
        "segments/0001/text.index",
        "segments/0001/groups.npy",
        "metadata/metadata_00003.parquet",
    }
    manifest = manifest_of(corpus)
    assert [part.shard for part in manifest.parts] == ["00000", "00001", "00002", "00003"]
    assert manifest.files == {
        name: digest for name, digest in after.items() if name not in ("index.json", "stamp.json")
    }


def test_segments_answer_as_one_index_of_all_rows_would(corpus: str, tmp_path: Path) -> None:
    run(corpus)
    write_corpus(Path(corpus), parts(0, 1, 2, 3))
    run(corpus)
    write_corpus(tmp_path / "whole", parts(0, 1, 2, 3))
    run(str(tmp_path / "whole"))
    queries = VECTORS.part(3)[1][:20].astype(np.float32)
    appended = Retriever.open(corpus).neighbours(queries, 10, "image")[1]
    whole = Retriever.open(str(tmp_path / "whole")).neighbours(queries, 10, "image")[1]
    np.testing.assert_array_equal(appended, whole)


def test_compacting_gives_the_bytes_of_an_index_built_at_once(corpus: str, tmp_path: Path) -> None:
    run(corpus)
    write_corpus(Path(corpus), parts(0, 1, 2, 3))
    run(corpus)
    run(corpus, compact=True)
    write_corpus(tmp_path / "whole", parts(0, 1, 2, 3))
    run(str(tmp_path / "whole"))
    compacted = digests(Path(index_url(corpus, ENCODER)))
    assert compacted == digests(Path(index_url(str(tmp_path / "whole"), ENCODER)))


@pytest.mark.parametrize(("numbers", "state"), [((0, 2), "gone"), ((0, 3, 2), "another")])
def test_parts_that_changed_or_went_are_named(
    corpus: str, numbers: tuple[int, ...], state: str
) -> None:
    run(corpus)
    names = ["00000", "00002"] if state == "gone" else ["00000", "00001", "00002"]
    write_corpus(Path(corpus), parts(*numbers), names=names)
    with pytest.raises(ConflictError, match=f"shard 00001 are {state}.*--overwrite"):
        run(corpus)
    assert run(corpus, overwrite=True).num_out == 750 * len(numbers)


KILLED = """
import os, sys
from infra import storage
import carrara

left = int(sys.argv.pop(1))
publish, move = storage.publish, storage.move

def counted(function):
    def wrapped(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments)
    return wrapped

storage.publish, storage.move = counted(publish), counted(move)
sys.exit(carrara.run_command(sys.argv[1:]))
"""
"""A command that is killed before its so-many-th file is published or moved."""


@pytest.mark.parametrize("num_steps", [3, 9, 14])
def test_killed_anywhere_a_compaction_run_again_ends_the_same(
    corpus: str, tmp_path: Path, num_steps: int
) -> None:
    run(corpus)
    write_corpus(Path(corpus), parts(0, 1, 2, 3))
    run(corpus)
    command = [sys.executable, "-c", KILLED, str(num_steps), "index", corpus, "--compact"]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr
    run(corpus, compact=True)
    write_corpus(tmp_path / "whole", parts(0, 1, 2, 3))
    run(str(tmp_path / "whole"))
    compacted = digests(Path(index_url(corpus, ENCODER)))
    assert compacted == digests(Path(index_url(str(tmp_path / "whole"), ENCODER)))


# Near duplicates


def groups_by_brute_force(pictures: np.ndarray) -> np.ndarray:
    """The smallest row of each connected component, by repeated spreading."""
    rows = pictures.astype(np.float32)
    is_near = rows @ rows.T > 0.94
    np.fill_diagonal(is_near, val=True)
    labels = np.arange(len(rows))
    while True:
        spread = np.where(is_near, labels, len(rows)).min(axis=1)
        if (spread == labels).all():
            return labels
        labels = spread


@pytest.mark.parametrize("kind", [None, "IVF16,PQ8x4fs,Refine(SQ4)"])
def test_near_duplicates_are_grouped_as_by_comparing_all_pairs(
    tmp_path: Path, kind: str | None
) -> None:
    """Copies of many pictures, chains of copies, and one picture forty times; some of each come
    with the part that is appended."""
    rng = np.random.default_rng(1)
    pictures, captions = VECTORS.part(0)
    chosen = np.concatenate([rng.integers(0, 300, 200), np.full(40, 301)])
    noise = rng.normal(size=(len(chosen), 32)) * 0.04
    copies = pictures[chosen] + noise
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    everything = np.concatenate([pictures, copies.astype(np.float16)])
    everything = everything[rng.permutation(len(everything))]
    texts = np.resize(captions, everything.shape)
    first, rest = slice(0, 800), slice(800, None)
    root = tmp_path / "corpus"
    write_corpus(root, iter([(everything[first], texts[first])]))
    run(str(root), kind=kind)
    write_corpus(root, ((everything[here], texts[here]) for here in (first, rest)))
    run(str(root), kind=kind)
    groups = read_groups(index_url(str(root), ENCODER), manifest_of(str(root)))
    expected = groups_by_brute_force(everything)
    assert len(np.unique(expected)) < 900
    np.testing.assert_array_equal(groups, expected)


def test_pictures_without_near_duplicates_stand_alone(corpus: str) -> None:
    run(corpus)
    pictures = np.concatenate([VECTORS.part(number)[0] for number in range(3)])
    groups = read_groups(index_url(corpus, ENCODER), manifest_of(corpus))
    np.testing.assert_array_equal(groups, groups_by_brute_force(pictures))
