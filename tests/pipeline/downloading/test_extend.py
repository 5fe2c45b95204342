"""A further list's shards beside those of a finished corpus, which keep their bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import storage
from infra.errors import ConflictError, ShortfallError
from pipeline.corpus import iter_samples, read_manifest, read_rows
from pipeline.download import Config, run
from pipeline.verify import Config as VerifyConfig
from pipeline.verify import run as verify
from tests.pipeline import downloads

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def config(folder: Path, name: str, urls: Sequence[str]) -> Config:
    pairs = [(url, f"picture {Path(url).name}") for url in urls]
    return downloads.config(folder, pairs, "corpus", name, opt_outs=("x-robots-tag",))


def extending(settings: Config) -> Config:
    return settings.model_copy(update={"incremental_mode": "extend"})


def digests(root: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "shards").iterdir())
    }


@pytest.fixture
def first(site: "Site", tmp_path: Path) -> Config:
    settings = config(tmp_path, "first", [site.picture(i) for i in range(6)])
    assert run(settings).counts == {"success": 6}
    return settings


@pytest.fixture
def second(site: "Site", first: Config) -> Config:
    urls = [site.picture(i) for i in range(5, 11)]  # picture 5 is in the first list, too
    return config(Path(first.root).parent, "second", [*urls, f"{site.url}/none.jpg"])


def test_shards_are_added_and_those_there_keep_their_bytes(first: Config, second: Config) -> None:
    root = Path(first.root)
    before = digests(root)
    summary = run(extending(second))
    assert summary.counts == {"success": 11, "duplicate": 1, "http 404": 1}
    manifest = read_manifest(first.root)
    assert [shard.name for shard in manifest.shards] == ["00000", "00001", "00002", "00003"]
    after = digests(root)
    assert {name: after[name] for name in before} == before
    samples = [s for shard in manifest.shards for s in iter_samples(first.root, shard)]
    assert len({sample.uid for sample in samples}) == 11
    assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
    rows = read_rows(first.root, manifest.shards[2]).to_pylist()
    assert [row["error_message"] for row in rows] == ["duplicate", None, None, None]
    assert not (root / "download").exists()
    assert verify(VerifyConfig(root=first.root)).details["samples"] == 11


def test_each_list_s_command_again_changes_nothing(first: Config, second: Config) -> None:
    run(extending(second))
    there = digests(Path(first.root))
    for settings in (first, second, extending(second), extending(first)):
        assert run(settings).counts["success"] == 11
    assert digests(Path(first.root)) == there


def test_an_empty_root_is_begun_as_without_it(site: "Site", tmp_path: Path) -> None:
    settings = config(tmp_path, "only", [site.picture(i) for i in range(3)])
    assert run(extending(settings)).counts == {"success": 3}


def test_another_configuration_or_another_stage_s_corpus_is_refused(
    first: Config, second: Config
) -> None:
    larger = second.model_copy(update={"image_size": 64})
    with pytest.raises(ConflictError, match=r"another configuration \(image_size = 32, now 64\)"):
        run(extending(larger))
    with pytest.raises(ConflictError, match="the corpus of another list"):
        run(second)
    assert read_manifest(first.root).num_samples == 6


def test_a_list_without_a_picture_leaves_the_corpus_as_it_was(
    site: "Site", tmp_path: Path, first: Config
) -> None:
    before = read_manifest(first.root)
    with pytest.raises(ShortfallError, match="none of its 2 rows gave a picture"):
        run(extending(config(tmp_path, "none", [f"{site.url}/none.jpg", f"{site.url}/no.jpg"])))
    assert read_manifest(first.root) == before
    assert not (Path(first.root) / "download").exists()


def test_what_may_pass_is_fetched_again_in_the_shards_of_its_list(
    site: "Site", tmp_path: Path, first: Config
) -> None:
    urls = [site.picture(20), f"{site.url}/busy"]
    settings = config(tmp_path, "busy", urls)
    site.hits["/busy"] = -10
    assert run(extending(settings)).counts == {"success": 7, "http 429": 1}
    before = digests(Path(first.root))
    site.hits["/busy"] = 10
    retried = settings.model_copy(update={"incremental_mode": "retry"})
    assert run(retried).counts == {"success": 8}
    after = digests(Path(first.root))
    assert {name for name in before if after[name] != before[name]} <= {
        "00002.tar",
        "00002.parquet",
        "00002_stats.json",
    }
    assert [e.num_shards for e in read_manifest(first.root).extensions] == [1]
    assert verify(VerifyConfig(root=first.root)).details["samples"] == 8


def test_killed_while_shards_take_their_places_it_goes_on(
    first: Config, second: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = first.model_copy(update={"root": str(tmp_path / "undisturbed")})
    run(undisturbed)
    run(extending(second.model_copy(update={"root": undisturbed.root})))

    moves = []
    move = storage.move

    def failing(source: str, target: str) -> None:
        moves.append(target)
        if len(moves) == 3:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(storage, "move", failing)
    with pytest.raises(KeyboardInterrupt):
        run(extending(second))
    assert read_manifest(first.root).num_samples == 6  # until then it is what it was
    monkeypatch.undo()
    run(extending(second))
    assert read_manifest(first.root) == read_manifest(undisturbed.root)
