"""Takedowns: what must be gone is gone everywhere, and nothing else has changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra import storage
from infra.errors import CarraraError, ConfigError, InputError
from pipeline import score, verify
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    read_image,
    read_manifest,
    read_selection,
    write_shard,
)
from pipeline.takedown.receipts import read_receipts
from pipeline.takedown.tombstones import TAKEN_DOWN, read_tombstones
from tests.pipeline.takedown.forgotten import (
    HERE,
    KEY,
    URL,
    files,
    rows,
    run,
    samples,
    turned_copy,
)


def test_a_sample_goes_and_all_others_stay_as_they_were(root: str) -> None:
    before, old_rows = samples(root), rows(root)
    summary = run(root, url=(URL,))
    assert (summary.num_in, summary.num_out) == (12, 11)
    after = samples(root)
    gone = before.pop(KEY)
    assert after == before
    assert rows(root) == old_rows | {
        KEY: dict.fromkeys(old_rows[KEY])
        | {"key": KEY, "uid": gone.uid, "status": "failed_to_download"}
        | {"error_message": TAKEN_DOWN}
    } | {
        key: old_rows[key] | {name: row[name] for name in ("image_offset", "image_size")}
        for key, row in rows(root).items()
        if key != KEY
    }
    manifest = read_manifest(root)
    assert manifest.counts == {SUCCESS: 11, "failed_to_download": 3, TAKEN_DOWN: 1}
    for key, row in rows(root).items():
        if row["status"] == SUCCESS:
            shard = next(s for s in manifest.shards if key.startswith(s.name))
            image = read_image(root, shard, row["image_offset"], row["image_size"])
            assert image == before[key].image
    stats = json.loads(Path(root, "shards/00000_stats.json").read_text())
    assert (stats["successes"], stats["failed_to_download"]) == (3, 2)


def test_files_that_hold_none_of_it_are_not_touched(root: str) -> None:
    before = files(root)
    run(root, url=(URL,))
    after = files(root)
    records = ("columns/caption/", "columns/image/")
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {
        "manifest.json",
        "shards/00000.tar",
        "shards/00000.parquet",
        "shards/00000_stats.json",
        *(f"{folder}{name}" for folder in records for name in ("00000.parquet", "stamp.json")),
        *(f"{folder}manifest.json" for folder in records),
        "selections/long.parquet",
        "selections/long.toml",
    }
    assert not Path(root, "forget").exists()


def test_nothing_of_it_is_left_in_any_file(root: str) -> None:
    caption = samples(root)[KEY].caption
    run(root, url=(URL,), note="ticket 7")
    for path in Path(root).rglob("*"):
        if path.suffix == ".parquet":
            text = repr(pq.read_table(path).to_pylist())
        elif path.is_file():
            text = path.read_bytes().decode("utf-8", "replace")
        else:
            continue
        assert URL not in text, path
        assert repr(caption)[1:-1] not in text, path


@pytest.mark.parametrize("kind", ["url", "uid", "sha256", "near"])
def test_each_kind_of_request_finds_it_given_or_listed(
    root: str, tmp_path: Path, kind: str
) -> None:
    row, image = rows(root)[KEY], samples(root)[KEY].image
    copy = tmp_path / "copy.png"
    turned_copy(image).save(copy)
    value = {"near": str(copy)}.get(kind) or row[kind]
    summary = run(root, **{kind: (value,)})
    assert summary.counts == {"rows found": 1, f"by {kind}": 1}
    assert KEY not in samples(root)

    other = samples(root)["000010002"]
    turned_copy(other.image).save(copy)
    value = {"near": str(copy)}.get(kind) or rows(root)["000010002"][kind]
    (tmp_path / "list").write_text(f"# asked for by mail\n\n{value}\n")
    run(root, **{f"{kind}_list": str(tmp_path / "list")})
    assert samples(root).keys().isdisjoint({KEY, "000010002"})


def test_a_domain_may_take_all_there_is(root: str) -> None:
    summary = run(root, domain=("example.org",))
    assert summary.num_out == 0
    assert summary.counts == {"rows found": 15, "by domain": 15}
    assert samples(root) == {}
    assert read_manifest(root).counts == {TAKEN_DOWN: 15}
    assert read_selection(root, "long").num_rows == 0


def test_a_row_that_failed_is_redacted_and_its_tar_left(root: str) -> None:
    before = files(root)
    run(root, url=("http://EXAMPLE.org/000010004.png",))
    after = files(root)
    assert rows(root)["000010004"]["url"] is None
    assert before["shards/00001.tar"] == after["shards/00001.tar"]
    assert before["columns/caption/00001.parquet"] == after["columns/caption/00001.parquet"]


def test_the_same_request_again_does_nothing(root: str) -> None:
    run(root, url=(URL,))
    before = files(root)
    summary = run(root, url=(URL,))
    assert summary.counts == {"rows found": 0}
    assert summary.outputs == {}
    assert files(root) == before


def test_what_is_not_there_is_refused_from_now_on_and_has_a_receipt(root: str) -> None:
    before = files(root)
    summary = run(root, domain=("example.com",))
    assert read_tombstones(root).reason(url="https://a.example.com/1.jpg") == TAKEN_DOWN
    assert read_receipts(root)[0].found == {}
    assert Path(summary.outputs["receipt"]).exists()
    assert before.items() <= files(root).items()


def test_rows_of_the_same_uid_go_too_wherever_they_are(tmp_path: Path) -> None:
    """A list may have a pair twice: the second is a row that failed, with the uid and no sha256."""
    root, url, digest = str(tmp_path), "https://example.org/1.png", "a" * 64
    sample = made_sample("000000000", url, "a cat", b"a picture", sha256=digest)
    twice = {name: sample.metadata[name] for name in ("uid", "url", "caption")}
    twice |= {"key": "000010000", "status": "failed_to_download", "error_message": "duplicate"}
    failed = pa.Table.from_pylist([twice], ROW_SCHEMA)
    shards = [
        write_made_shard(root, "00000", [sample]),
        write_shard(root, "00001", [], failed, {}),
    ]
    write_made_manifest(root, shards, failed={"duplicate": 1})
    run(root, sha256=(digest,))
    assert [row["url"] for row in rows(root).values()] == [None, None]
    assert read_manifest(root).counts == {TAKEN_DOWN: 2}


def test_a_blocklist_sweeps_what_is_there(root: str, tmp_path: Path) -> None:
    hashes = tmp_path / "made-up.txt"
    stored = hashlib.md5(samples(root)[KEY].image).hexdigest()
    fetched = rows(root)["000020001"]["sha256"]
    hashes.write_text(f"# not of anything real\nmd5:{stored}\nsha256:{fetched.upper()}\n")
    summary = run(root, blocklist=(str(hashes),))
    assert summary.counts == {"rows found": 2, "by blocklist made-up.txt": 2}
    assert samples(root).keys().isdisjoint({KEY, "000020001"})
    receipt = Path(summary.outputs["receipt"]).read_text()
    assert stored not in receipt


def test_no_corpus_is_no_place_for_tombstones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no corpus here"):
        run(str(tmp_path / "typo"), url=(URL,))
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "nothing to forget; say what with --url"),
        ({"url": ("example.org/1.jpg",)}, InputError, "no address"),
        ({"domain": ("https://example.org",)}, InputError, "expected a name such as example.org"),
        ({"domain": ("*.example.org",)}, InputError, "covers its subdomains"),
        ({"domain": ("co.uk",)}, ConfigError, "is a public suffix"),
        ({"uid": ("abc",)}, InputError, "expected 32 hex digits"),
        ({"sha256": ("x" * 64,)}, InputError, "expected 64 hex digits"),
        ({"near": ("/nothing.png",)}, InputError, "no such file"),
        ({"url_list": "/nothing.txt"}, InputError, "no such file"),
        ({"blocklist": ("/nothing.txt",)}, InputError, "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_trace(
    root: str, settings: dict[str, Any], error: type[CarraraError], message: str
) -> None:
    before = files(root)
    with pytest.raises(error, match=message) as caught:
        run(root, **settings)
    assert "\n" not in str(caught.value)
    assert files(root) == before


def test_a_picture_that_shows_nothing_finds_nothing(root: str, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.new("RGB", (200, 200), "grey").save(grey)
    with pytest.raises(InputError, match="shows too little"):
        run(root, near=(str(grey),))


def test_it_works_on_an_object_store(s3_bucket: str, make_corpus: Callable[..., Manifest]) -> None:
    root = f"{s3_bucket}/corpus"
    make_corpus(root, num_shards=2, num_samples=3)
    score.run(score.Config(root=root, signals=("caption",), workers=HERE))
    summary = run(root, url=("https://example.org/000010001.png",))
    assert summary.counts == {"rows found": 1, "by url": 1}
    assert "000010001" not in samples(root)
    assert not storage.exists(f"{root}/forget/plan.json")
    assert verify.run(verify.Config(root=root)).counts["tombstones kept"] == 2


def test_a_dry_run_shows_what_would_go_and_leaves_it(root: str) -> None:
    before, row = files(root), rows(root)[KEY]
    summary = run(root, url=(URL,), sha256=(rows(root)["000010002"]["sha256"],), dry_run=True)
    assert summary.counts == {"rows found": 2, "by url": 1, "by sha256": 1}
    assert summary.table[0] == {
        "key": KEY,
        "found_by": "url",
        **{name: row[name] for name in ("uid", "caption", "url")},
    }
    assert files(root) == before
