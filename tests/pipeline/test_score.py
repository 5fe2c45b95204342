import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, ShortfallError
from infra.summary import Summary
from pipeline import score
from pipeline.corpus import list_signals, read_columns, read_manifest

HERE = Workers(local=True)

LENGTH = """
import pyarrow as pa
from pipeline.corpus import iter_samples

class Length:
    name = "length"
    schema = pa.schema([("length", pa.int32())])

    def __init__(self, root, options):
        self.root, self.factor = root, int(options.get("factor", 1))

    def identity(self):
        return {"factor": self.factor}

    def __call__(self, shard):
        samples = list(iter_samples(self.root, shard))
        return pa.table({
            "uid": [sample.uid for sample in samples],
            "length": pa.array([self.factor * len(s.caption) for s in samples], pa.int32()),
        })

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


@pytest.fixture
def on_ray() -> Iterator[Workers]:
    import ray

    yield Workers(num_workers=1)
    ray.shutdown()


def test_ray_workers_write_the_same_bytes(small_corpus: str, on_ray: Workers) -> None:
    run(small_corpus, "image")
    here = column_files(small_corpus, "image")
    for path in Path(small_corpus, "columns", "image").iterdir():
        path.unlink()
    score.run(score.Config(root=small_corpus, signals=("image",), workers=on_ray))
    assert column_files(small_corpus, "image") == here


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
