"""A takedown with all that can follow from a corpus: embeddings, indices, neighbours; and kills."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.cluster import Workers
from pipeline import forget, score, select, verify
from pipeline.corpus import Manifest, read_manifest
from pipeline.takedown.tombstones import read_tombstones
from retrieval import embed, index
from retrieval.embedding.embeddings import embeddings_url, index_url
from retrieval.search import Retriever

HERE = Workers(local=True)
URL = "https://example.org/000010001.png"
SIGNALS = ("caption", "clip", "neighbours")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    root = str(tmp_path_factory.mktemp("original") / "corpus")
    make_corpus(root, num_shards=3, num_samples=4)
    make_derived(root, tiny_encoder)
    Path(root, "report.html").write_text("a page with pictures")
    return root


@pytest.fixture
def root(original: str, tmp_path: Path) -> str:
    return str(shutil.copytree(original, tmp_path / "corpus"))


def make_derived(root: str, encoder: str) -> None:
    """What is there already is found and left."""
    embed.run(embed.Config(root=root, encoder=encoder, workers=HERE))
    index.run(index.Config(root=root))
    score.run(score.Config(root=root, signals=SIGNALS, workers=HERE))
    select.run(select.Config(root=root, name="near", where="knn_rank_image < 150"))


def take_down(root: str, **settings: Any) -> None:
    forget.run(forget.Config(root=root, workers=HERE, **settings))


def contents(root: str) -> dict[str, str]:
    """Digests of all files; of tombstones and receipts without when they were written."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        name = str(path.relative_to(root))
        if name == "tombstones.parquet":
            found[name] = read_tombstones(root).digest
        elif path.is_file() and name.startswith("receipts/"):
            data = path.read_bytes()
            if path.suffix == ".json":
                record = json.loads(data)
                data = json.dumps({**record, "name": "", "time": ""}).encode()
            found["receipts/" + name.partition(".")[2]] = hashlib.sha256(data).hexdigest()
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def arrays(root: str, encoder: str) -> dict[str, np.ndarray]:
    """Picture's vector by uid."""
    folder = Path(embeddings_url(root, encoder))
    vectors: dict[str, np.ndarray] = {}
    for number in range(3):
        uids = pq.read_table(folder / f"metadata/metadata_{number}.parquet")["uid"].to_pylist()
        rows = np.load(folder / f"img_emb/img_emb_{number}.npy")
        vectors |= dict(zip(uids, rows, strict=True))
    return vectors


def test_embeddings_lose_its_rows_and_keep_all_others(
    original: str, root: str, tiny_encoder: str
) -> None:
    take_down(root, url=(URL,))
    before, after = arrays(original, tiny_encoder), arrays(root, tiny_encoder)
    (gone,) = before.keys() - after.keys()
    assert read_tombstones(root).reason(uid=gone)
    for uid, row in after.items():
        assert (row == before[uid]).all()
    for name in ("img_emb/img_emb_0.npy", "metadata/metadata_2.parquet"):
        old = Path(embeddings_url(original, tiny_encoder), name)
        new = Path(embeddings_url(root, tiny_encoder), name)
        assert old.read_bytes() == new.read_bytes()
        assert old.stat().st_mtime_ns == new.stat().st_mtime_ns


def test_metadata_are_as_if_embedded_without_it(root: str, tiny_encoder: str) -> None:
    take_down(root, url=(URL,))
    folder = Path(embeddings_url(root, tiny_encoder), "metadata")
    followed = {path.name: path.read_bytes() for path in folder.iterdir()}
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE, overwrite=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == followed


def test_the_index_answers_without_it(root: str, tiny_encoder: str) -> None:
    vector = arrays(root, tiny_encoder)
    take_down(root, url=(URL,))
    (gone,) = vector.keys() - arrays(root, tiny_encoder).keys()
    retriever = Retriever.open(root)
    assert retriever.num_rows == 11
    (hits,) = retriever.search(vector[gone][None].astype(np.float32), k=11)
    assert gone not in {hit.uid for hit in hits}
    assert retriever.read_images(hits).keys() == {hit.uid for hit in hits}


def test_everything_after_it_finds_its_work_done(root: str, tiny_encoder: str) -> None:
    take_down(root, url=(URL,))
    before = contents(root)
    times = {
        path: path.stat().st_mtime_ns
        for folder in ("shards", "columns", "embeddings", "index")
        for path in Path(root, folder).rglob("*")
        if path.suffix in {".parquet", ".npy", ".index", ".tar"}
    }
    make_derived(root, tiny_encoder)
    assert contents(root).keys() == before.keys()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    verify.run(verify.Config(root=root))


def test_a_row_that_never_was_a_sample_leaves_vectors_and_index_alone(
    original: str, root: str, tiny_encoder: str
) -> None:
    take_down(root, url=("https://example.org/000010004.png",))
    for url in (embeddings_url, index_url):
        for path in Path(url(root, tiny_encoder)).rglob("*"):
            if path.suffix in {".npy", ".index", ".parquet"}:
                old = Path(original, path.relative_to(root))
                assert old.stat().st_mtime_ns == path.stat().st_mtime_ns
    Retriever.open(root)
    make_derived(root, tiny_encoder)


def test_nothing_is_left_when_all_is_taken_down(root: str, tiny_encoder: str) -> None:
    take_down(root, domain=("example.org",))
    assert arrays(root, tiny_encoder) == {}
    assert not Path(index_url(root, tiny_encoder)).exists()
    verify.run(verify.Config(root=root))


def test_embeddings_of_another_state_of_the_corpus_are_removed(
    root: str, tiny_encoder: str
) -> None:
    folder = Path(embeddings_url(root, tiny_encoder))
    for shard in read_manifest(root).shards:
        record = folder / f"parts/part_{int(shard.name)}.json"
        record.write_text(record.read_text().replace(shard.sha256, "0" * 64))
    take_down(root, url=(URL,))
    assert not folder.exists()
    assert not Path(index_url(root, tiny_encoder)).exists()


def test_embeddings_of_a_corpus_that_has_grown_since_lose_its_rows_too(
    root: str, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    make_corpus(root, num_shards=4, num_samples=4)
    take_down(root, url=(URL,))
    assert len(arrays(root, tiny_encoder)) == 11
    assert not Path(index_url(root, tiny_encoder)).exists()
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=root))
    assert Retriever.open(root).num_rows == 15


def test_segments_before_the_first_that_held_any_keep_their_files(
    root: str, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    for num_shards in (4, 5):
        make_corpus(root, num_shards=num_shards, num_samples=4)
        embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
        index.run(index.Config(root=root))
    folder = Path(index_url(root, tiny_encoder))
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.index")}
    service = Retriever.open(root)
    assert [one.num_rows for one in service.manifest.segments] == [12, 4, 4]
    taken = service.hits(np.array([13]), np.ones(1))[0]
    vector = service.vectors(np.array([13]), "image")
    take_down(root, uid=(taken.uid,))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.index")} == files
    assert service.refresh()
    assert [one.num_rows for one in service.manifest.segments] == [12, 7]
    ((*hits,),) = service.search(vector, 20)
    assert len(hits) == 19
    assert taken.uid not in {hit.uid for hit in hits}
    verify.run(verify.Config(root=root))


def test_an_embed_that_was_killed_goes_on(root: str, tiny_encoder: str) -> None:
    folder = Path(embeddings_url(root, tiny_encoder))
    (folder / "manifest.json").unlink()
    (folder / "parts/part_1.json").unlink()
    shutil.rmtree(index_url(root, tiny_encoder))
    take_down(root, url=(URL,))
    assert not (folder / "img_emb/img_emb_1.npy").exists()
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    assert len(arrays(root, tiny_encoder)) == 11


def test_pages_with_pictures_are_removed(root: str) -> None:
    take_down(root, url=(URL,))
    assert not Path(root, "report.html").exists()


KILLED = """
import os, random, signal, sys
sys.path.insert(0, sys.argv[1])
from infra.cluster import Workers
from pipeline import forget
import retrieval.forgetting, retrieval.index, retrieval.knn
url, roots = sys.argv[2], sys.argv[3:]

def forget_until(root, num_steps):
    child = os.fork()
    if child == 0:
        left = num_steps
        def count(event, args):
            nonlocal left
            if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        if num_steps is not None:
            sys.addaudithook(count)
        forget.run(forget.Config(root=root, url=(url,), workers=Workers(local=True)))
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

generator = random.Random(0)
for root in roots:
    kills = [forget_until(root, generator.randrange(most)) for most in (15, 60, 120, 120)]
    assert not forget_until(root, None)
    print(sum(kills))
"""


def test_killed_at_any_step_it_ends_in_the_same_bytes(
    original: str, root: str, tmp_path: Path
) -> None:
    """SIGKILL at the nth change to the disk, several times over, then a run to the end."""
    roots = [str(shutil.copytree(original, tmp_path / f"{number}")) for number in range(5)]
    command = [sys.executable, "-c", KILLED, str(ROOT), URL, *roots]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) >= 10
    take_down(root, url=(URL,))
    for place in roots:
        assert contents(place) == contents(root)
        verify.run(verify.Config(root=place))


def test_ray_workers_do_the_same(original: str, root: str, tmp_path: Path) -> None:
    reference = str(shutil.copytree(original, tmp_path / "reference"))
    take_down(reference, url=(URL,))
    take_down_by_ray = forget.Config(root=root, url=(URL,), workers=Workers(num_workers=2))
    forget.run(take_down_by_ray)
    assert contents(root) == contents(reference)
