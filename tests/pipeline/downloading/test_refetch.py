"""What failed for a reason that may pass is fetched again; all else keeps its bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pytest

from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError, ShortfallError
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_manifest,
    read_rows,
    shard_url,
    write_manifest,
)
from pipeline.download import Config, run
from pipeline.downloading import worklist
from pipeline.score import Config as ScoreConfig
from pipeline.score import run as score
from pipeline.takedown.tombstones import (
    Kind,
    Tombstone,
    add_tombstones,
    domain_digest,
    url_digest,
)
from tests.pipeline import downloads

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

HERE = Workers(local=True)


def config(folder: Path, urls: Sequence[str]) -> Config:
    pairs = [(url, f"picture {i}") for i, url in enumerate(urls)]
    return downloads.config(folder, pairs, "corpus", "list", opt_outs=("x-robots-tag",))


def again(settings: Config) -> Config:
    return settings.model_copy(update={"incremental_mode": "retry"})


def shard_bytes(root: Path) -> dict[str, tuple[str, int]]:
    """sha256 and inode: a file that was written again has another inode."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_ino)
        for path in sorted((root / "shards").iterdir())
    }


@pytest.fixture
def troubled(site: "Site", tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """A corpus of three shards; in the middle one two pictures are busy and one is gone."""
    site.busy_status = getattr(request, "param", 429)
    urls = [site.picture(i) for i in range(12)]
    urls[5], urls[6], urls[7] = f"{site.url}/busy?a", f"{site.url}/none.jpg", f"{site.url}/busy?b"
    settings = config(tmp_path, urls)
    site.hits["/busy"] = -10  # busy eleven times from now on
    busy = f"http {site.busy_status}"
    assert run(settings).counts == {"success": 9, busy: 2, "http 404": 1}
    return settings


@pytest.mark.parametrize("troubled", [429, 503], indirect=True)
def test_what_was_busy_comes_in_and_good_shards_keep_their_bytes(
    site: "Site", troubled: Config
) -> None:
    root = Path(troubled.root)
    before, manifest = shard_bytes(root), read_manifest(troubled.root)
    site.hits.clear()
    site.hits["/busy"] = 10
    summary = run(again(troubled))
    assert summary.counts == {"success": 11, "http 404": 1}
    assert site.hits.keys() <= {"/busy", "/robots.txt"}
    assert site.hits["/busy"] == 12
    after, better = shard_bytes(root), read_manifest(troubled.root)
    for name in before:
        assert (after[name] == before[name]) == (not name.startswith("00001")), name
    assert better.digest != manifest.digest
    assert [shard.num_samples for shard in better.shards] == [4, 3, 4]
    old = {
        s.uid: s.image for shard in manifest.shards[::2] for s in iter_samples(troubled.root, shard)
    }
    new = [s for shard in better.shards for s in iter_samples(troubled.root, shard)]
    assert old.items() <= {sample.uid: sample.image for sample in new}.items()
    assert [sample.key for sample in new] == sorted(sample.key for sample in new)
    rows = read_rows(troubled.root, better.shards[1]).to_pylist()
    assert [row["error_message"] for row in rows] == [None, None, "http 404", None]
    assert not (root / "download").exists()
    assert run(troubled).counts == summary.counts


def test_the_same_answers_at_once_would_have_given_the_same_bytes(
    site: "Site", troubled: Config, tmp_path: Path
) -> None:
    site.hits["/busy"] = 10
    later = run(again(troubled))
    at_once = run(troubled.model_copy(update={"root": str(tmp_path / "at once")}))
    assert later.details["corpus_digest"] == at_once.details["corpus_digest"]


def test_where_nothing_fares_better_nothing_is_written(site: "Site", troubled: Config) -> None:
    before, manifest = shard_bytes(Path(troubled.root)), read_manifest(troubled.root)
    site.hits["/busy"] = -100
    assert run(again(troubled)).counts == manifest.counts
    assert shard_bytes(Path(troubled.root)) == before
    assert read_manifest(troubled.root) == manifest


def test_another_reason_to_fail_is_not_worth_a_shard(site: "Site", troubled: Config) -> None:
    before, manifest = shard_bytes(Path(troubled.root)), read_manifest(troubled.root)
    site.hits["/busy"] = -100
    site.busy_status = 503
    assert run(again(troubled)).counts == manifest.counts
    assert shard_bytes(Path(troubled.root)) == before
    assert read_manifest(troubled.root) == manifest


@pytest.mark.parametrize("kind", ["url", "uid", "domain"])
def test_what_was_taken_down_in_the_meantime_is_not_asked_for(
    site: "Site", troubled: Config, kind: Kind
) -> None:
    """As beside a takedown that was killed after its tombstones."""
    shard = read_manifest(troubled.root).shards[1]
    row = read_rows(troubled.root, shard).to_pylist()[1]
    values = {
        "url": url_digest(row["url"]),
        "uid": row["uid"],
        "domain": domain_digest("127.0.0.1"),
    }
    stone = Tombstone(kind, values[kind], None, "2026-01-01T00:00:00Z", "receipt")
    add_tombstones(troubled.root, [stone])
    site.hits.clear()
    site.hits["/busy"] = 10
    num_others = 0 if kind == "domain" else 1
    summary = run(again(troubled))
    assert summary.counts["taken down"] == 2 - num_others
    assert site.hits["/busy"] == 10 + num_others
    (shard,) = [one for one in read_manifest(troubled.root).shards if one.name == shard.name]
    assert shard.num_samples == 1 + num_others
    assert read_rows(troubled.root, shard).to_pylist()[1]["url"] is None


def test_a_retry_without_a_network_says_so(troubled: Config) -> None:
    lead_nowhere(troubled.root)
    before, manifest = shard_bytes(Path(troubled.root)), read_manifest(troubled.root)
    with pytest.raises(ShortfallError, match=r"DNS fails: asked for its only host") as caught:
        run(again(troubled))
    assert "\n" not in str(caught.value)
    assert shard_bytes(Path(troubled.root)) == before
    unasked = again(troubled).model_copy(update={"min_success_rate": 0.0})
    assert run(unasked).counts == manifest.counts


def test_rows_of_hosts_that_are_still_gone_stop_no_retry(site: "Site", tmp_path: Path) -> None:
    settings = config(tmp_path, [site.picture(0), "http://host.invalid/1.jpg"])
    assert run(settings).counts == {"success": 1, "dns": 1}
    assert run(again(settings)).counts == {"success": 1, "dns": 1}


def test_a_retry_killed_while_shards_take_their_places_goes_on(
    site: "Site", troubled: Config, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    storage_copy(Path(troubled.root), copy)
    site.hits["/busy"] = 10
    whole = run(again(troubled))
    better = read_manifest(troubled.root)
    # What a kill leaves between the first file's move and the manifest.
    for name in ("00001.tar", "00001.parquet", "00001_stats.json"):
        staged = copy / "download" / "staged" / "shards" / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes((Path(troubled.root) / "shards" / name).read_bytes())
    worklist.stage_manifest(str(copy), better)
    (copy / "manifest.json").unlink()
    (copy / "download" / "staged" / "shards" / "00001.tar").replace(copy / "shards" / "00001.tar")
    resumed = run(troubled.model_copy(update={"root": str(copy)}))
    assert resumed.details["corpus_digest"] == whole.details["corpus_digest"]
    assert not (copy / "download").exists()


def test_scores_of_the_corpus_as_it_was_are_refused_in_one_line(
    site: "Site", troubled: Config
) -> None:
    score_config = ScoreConfig(root=troubled.root, signals=("caption",), workers=HERE)
    score(score_config)
    site.hits["/busy"] = 10
    run(again(troubled))
    with pytest.raises(ConflictError, match="--overwrite") as caught:
        score(score_config)
    assert "\n" not in str(caught.value)
    score(score_config.model_copy(update={"overwrite": True}))


def lead_nowhere(root: str) -> None:
    """The corpus of a site whose name resolves no more."""
    shards = []
    for shard in read_manifest(root).shards:
        url, rows = shard_url(root, shard.name, ".parquet"), read_rows(root, shard)
        urls = pc.replace_substring(rows["url"], "127.0.0.1", "nowhere.invalid")
        place = rows.column_names.index("url")
        storage.publish_table(url, rows.set_column(place, "url", urls))
        shards.append(shard.model_copy(update={"rows_sha256": storage.sha256(url)}))
    write_manifest(root, Manifest(**dict(read_manifest(root)) | {"shards": shards}))


def storage_copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            storage.publish_bytes(str(target / path.relative_to(source)), path.read_bytes())
