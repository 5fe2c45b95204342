"""Takedowns: what must be gone is gone everywhere, and nothing else has changed."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from infra import storage
from infra.cluster import Workers
from infra.errors import CarraraError, ConfigError, DamagedError, InputError, ShortfallError
from infra.summary import Summary
from pipeline import download, forget, pack, score, select, verify
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    iter_samples,
    read_columns,
    read_image,
    read_manifest,
    read_rows,
    read_selection,
    write_manifest,
    write_shard,
)
from pipeline.dedup import stage as dedup
from pipeline.sample import Sample, sample_uid
from pipeline.takedown.asked import Request, asked_for
from pipeline.takedown.receipts import Receipt, read_receipts
from pipeline.takedown.tombstones import TAKEN_DOWN, Tombstone, add_tombstones, read_tombstones

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

HERE = Workers(local=True)
EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
KEY = "000000003"
URL = f"https://example.org/{KEY}.png"


@pytest.fixture
def root(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    """3 shards of 4 emoji, scored and selected."""
    place = str(tmp_path / "corpus")
    make_corpus(place, num_shards=3, num_samples=4)
    score.run(score.Config(root=place, signals=("caption", "image"), workers=HERE))
    select.run(select.Config(root=place, name="long", where="num_words > 1"))
    return place


def run(root: str, **settings: Any) -> Summary:
    return forget.run(forget.Config(root=root, workers=HERE, **settings))


def samples(root: str) -> dict[str, Sample]:
    manifest = read_manifest(root)
    return {s.key: s for shard in manifest.shards for s in iter_samples(root, shard)}


def rows(root: str) -> dict[str, dict[str, Any]]:
    manifest = read_manifest(root)
    return {
        row["key"]: row for shard in manifest.shards for row in read_rows(root, shard).to_pylist()
    }


def files(root: str) -> dict[str, tuple[str, int]]:
    """sha256 and time of writing of every file."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def turned_copy(image: bytes) -> Image.Image:
    """Mirrored and compressed anew."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    out = io.BytesIO()
    ImageOps.mirror(picture).save(out, "JPEG", quality=60)
    return Image.open(out)


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


def test_columns_and_selections_are_as_if_made_without_it(root: str) -> None:
    run(root, url=(URL,))
    followed = files(root)
    signals = ("caption", "image")
    score.run(score.Config(root=root, signals=signals, workers=HERE, overwrite=True))
    select.run(select.Config(root=root, name="long", where="num_words > 1"))
    anew = files(root)
    for name in followed:
        assert followed[name][0] == anew[name][0], name


def test_what_comes_after_finds_everything_done(root: str) -> None:
    run(root, url=(URL,))
    before = files(root)
    score.run(score.Config(root=root, signals=("caption", "image"), workers=HERE))
    columns = {name: old for name, old in before.items() if name.endswith("0.parquet")}
    assert columns.items() <= files(root).items()


def test_a_signal_that_was_still_being_scored_goes_on(root: str) -> None:
    folder = Path(root, "columns/caption")
    (folder / "manifest.json").unlink()
    (folder / "00001.parquet").unlink()
    run(root, url=(URL,))
    assert pq.read_table(folder / "00000.parquet").num_rows == 3
    score.run(score.Config(root=root, signals=("caption",), workers=HERE))
    assert verify.run(verify.Config(root=root)).counts["columns intact"] == 6


@pytest.mark.parametrize("name", ["columns/caption/00000.parquet", "selections/long.parquet"])
def test_what_is_damaged_is_not_taken_for_good(root: str, name: str) -> None:
    whole, manifest = Path(root, name).read_bytes(), Path(root, "manifest.json").read_bytes()
    Path(root, name).write_bytes(b"spoilt" + whole)
    with pytest.raises(DamagedError, match=rf"{name}: other bytes than its manifest says"):
        run(root, url=(URL,))
    assert Path(root, "manifest.json").read_bytes() == manifest
    Path(root, name).write_bytes(whole)
    assert run(root, url=(URL,)).counts == {"rows found": 1, "by url": 1}
    verify.run(verify.Config(root=root))


def test_a_packed_corpus_follows_when_it_is_named(root: str, tmp_path: Path) -> None:
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=root, output=packed, selection="long", samples_per_shard=3))
    uid = next(iter(samples(packed).values())).uid
    image = tmp_path / "copy.png"
    turned_copy(next(iter(samples(packed).values())).image).save(image)
    summary = run(root, near=(str(image),), also=(packed,))
    assert summary.counts["rows found"] == 2
    assert uid not in {sample.uid for place in (root, packed) for sample in samples(place).values()}
    assert read_tombstones(packed).reason(uid=uid) == TAKEN_DOWN
    assert len(read_receipts(packed)) == len(read_receipts(root)) == 1


def test_the_receipt_tells_what_was_done_by_digests(root: str) -> None:
    before = files(root)
    old = read_manifest(root)
    summary = run(root, url=(URL,), note="ticket 7")
    after = files(root)
    receipt = Receipt.model_validate_json(Path(summary.outputs["receipt"]).read_text())
    assert receipt.asked[0].note == "ticket 7"
    assert receipt.found == {"url": 1}
    assert receipt.shards == ["00000"]
    assert receipt.corpus_digest.before == old.digest
    assert receipt.corpus_digest.after == read_manifest(root).digest
    for name, change in receipt.files.items():
        assert (change.before, change.after) == (before[name][0], after[name][0]), name
        assert change.before != change.after
    table = pq.read_table(summary.outputs["receipt"].replace(".json", ".files.parquet"))
    assert table.num_rows == len(receipt.files) + receipt.num_unchanged
    for row in table.to_pylist():
        assert row["before"] == before[row["path"]][0]
        assert row["after"] == after[row["path"]][0]
    moved = pq.read_table(summary.outputs["receipt"].replace(".json", ".rows.parquet"))
    assert moved["key"].to_pylist() == [KEY]
    assert moved["status"].to_pylist() == [SUCCESS]


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
    root, url, image = str(tmp_path), "https://example.org/1.png", b"a picture"
    empty: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    row = empty | {"uid": sample_uid(url, "a cat"), "url": url, "caption": "a cat"}
    good = row | {"key": "000000000", "status": SUCCESS, "sha256": "a" * 64}
    twice = row | {"key": "000010000", "status": "failed_to_download", "error_message": "duplicate"}
    sample = Sample(good["key"], row["uid"], "a cat", image, "jpg", good)
    shards = [
        write_shard(root, name, given, pa.Table.from_pylist([one], ROW_SCHEMA), {})
        for name, given, one in (("00000", [sample], good), ("00001", [], twice))
    ]
    counts = {SUCCESS: 1, "duplicate": 1}
    write_manifest(
        root,
        Manifest(
            stage="download",
            config={},
            config_digest="0",
            input_digest="0",
            shards=shards,
            counts=counts,
        ),
    )
    run(root, sha256=("a" * 64,))
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


def test_tombstones_stand_even_where_a_shard_is_damaged(root: str) -> None:
    tar = Path(root, "shards/00000.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    with pytest.raises(ShortfallError, match=r"1 of 3 shards failed.*run the command again"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN
    tar.write_bytes(whole)
    forget.run(forget.Config(root=root, workers=HERE))
    assert KEY not in samples(root)
    assert len(read_receipts(root)) == 1


def test_requests_that_come_while_one_is_unfinished_share_its_receipt(root: str) -> None:
    tar = Path(root, "shards/00000.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    for url in (URL, "https://example.org/000000002.png"):
        with pytest.raises(ShortfallError):
            run(root, url=(url,))
    tar.write_bytes(whole)
    assert run(root, url=("https://example.org/000000001.png",)).counts["rows found"] == 3
    (receipt,) = read_receipts(root)
    assert len(receipt.asked) == 3
    assert {stone.receipt for stone in read_tombstones(root).stones} == {receipt.name}


def test_a_download_under_way_refuses_at_once(tmp_path: Path) -> None:
    root = str(tmp_path / "corpus")
    Path(root, "download").mkdir(parents=True)
    Path(root, "download", "plan.json").write_text("{}")
    with pytest.raises(ShortfallError, match="has not come to its end; it refuses from now on"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN


def test_a_later_download_refuses_it_and_keeps_nothing_of_it(site: "Site", tmp_path: Path) -> None:
    root = str(tmp_path / "corpus")
    urls = [site.picture(number) for number in range(4)]
    pairs = pa.table({"url": urls, "caption": ["one", "two", "three", "four"]})
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    settings: dict[str, Any] = {"image_size": 32, "allow_hosts": ["127.0.0.1"], "overwrite": True}
    places = {"url_list": str(tmp_path / "pairs.parquet"), "root": root, "workers": HERE}
    download.run(download.Config(**places, **settings))
    old = rows(root)
    site.hits.clear()
    run(root, url=(urls[0],), sha256=(old["000000001"]["sha256"],))
    for encode_quality in (95, 80):  # the same corpus again, and another one in its place
        download.run(download.Config(**places, **settings, encode_quality=encode_quality))
        assert list(samples(root)) == ["000000002", "000000003"]
        assert [row["url"] for row in rows(root).values()] == [None, None, *urls[2:]]
        verify.run(verify.Config(root=root))
    settings |= {"encode_quality": 80, "overwrite": False, "incremental_mode": "retry"}
    before = read_manifest(root).digest
    download.run(download.Config(**places, **settings))
    assert read_manifest(root).digest == before
    assert site.hits["/picture/0.jpg"] == 0


def test_a_later_pack_leaves_it_out(root: str, tmp_path: Path) -> None:
    image = tmp_path / "copy.png"
    kept = read_selection(root, "long")
    uid = kept.filter(kept["keep"])["uid"][0].as_py()
    turned_copy(next(s for s in samples(root).values() if s.uid == uid).image).save(image)
    stones = [Tombstone(*stone, "", "") for stone in asked_for(Request(near=(str(image),))).stones]
    add_tombstones(root, stones)  # as a takedown does that is killed right after
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=root, output=packed, selection="long"))
    assert uid not in {sample.uid for sample in samples(packed).values()}
    assert read_tombstones(packed).digest == read_tombstones(root).digest


def test_a_download_that_was_killed_brings_nothing_back(root: str) -> None:
    """Of a finished corpus: a retry, or another list's in its place. What it has is from before."""
    staged = Path(root, "download")
    staged.mkdir()
    (staged / "plan.json").write_text("{}")
    run(root, url=("https://example.com/not-in-the-corpus.jpg",))
    assert not staged.exists()


def test_a_download_about_to_be_put_in_place_comes_first(root: str) -> None:
    before = files(root)
    Path(root, "download").mkdir()
    Path(root, "download", "manifest.json").write_text("{}")
    with pytest.raises(ShortfallError, match="let it finish, then run `carrara forget"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN
    assert before.items() <= files(root).items()


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


@pytest.fixture
def deduplicated(tmp_path: Path) -> str:
    """Four copies of one picture and another picture, over two shards; and what dedup found."""
    pictures = zipfile.ZipFile(EMOJI / "pictures.zip")
    names = ["same", "same", "other", "same", "same"]
    files = {"same": pictures.namelist()[0], "other": pictures.namelist()[9]}
    place = str(tmp_path / "corpus")
    shards = []
    for shard, numbers in (("00000", (0, 1, 2)), ("00001", (3, 4))):
        samples, rows = [], []
        for number in numbers:
            row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
            url, caption = f"https://example.org/{number}.png", f"caption {number}"
            image = pictures.read(files[names[number]])
            row |= {"key": f"{shard}{number:04d}", "uid": sample_uid(url, caption), "url": url}
            row |= {"caption": caption, "status": SUCCESS, "width": 72, "height": 72}
            row |= {"original_width": 72, "original_height": 72}
            row["sha256"] = hashlib.sha256(image).hexdigest()
            rows.append(row)
            samples.append(Sample(row["key"], row["uid"], caption, image, "png", row))
        table = pa.Table.from_pylist(rows, ROW_SCHEMA)
        shards.append(write_shard(place, shard, samples, table, {}))
    digests = {"config_digest": "0", "input_digest": "0"}
    manifest = Manifest(stage="download", config={}, shards=shards, counts={SUCCESS: 5}, **digests)
    write_manifest(place, manifest)
    dedup.run(dedup.Config(root=place, workers=HERE))
    return place


def test_copies_of_what_goes_get_another_to_stand_for_them(deduplicated: str) -> None:
    root = deduplicated

    def duplicates() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = read_columns(root, "duplicates").to_pylist()
        return rows

    survivor = next(row["duplicate_of"] for row in duplicates() if row["duplicate_of"])
    run(root, uid=(survivor,))
    (heir,) = {row["duplicate_of"] for row in duplicates()} - {None}
    assert heir != survivor
    assert [row["duplicate_of"] for row in duplicates()].count(heir) == 2
    (stands,) = (row for row in duplicates() if row["uid"] == heir)
    assert stands["duplicate_of"] is stands["duplicate_evidence"] is None
    assert stands["duplicate_group"] == heir
    assert verify.run(verify.Config(root=root)).counts["tombstones kept"] == 1

    before = files(root)
    dedup.run(dedup.Config(root=root, workers=HERE))  # finds its work done
    after = files(root)
    for name in before:
        if name.startswith("columns/") and name.endswith(".parquet"):
            assert before[name] == after[name], name


def test_a_near_copy_is_found_by_the_hashes_that_were_scored(
    deduplicated: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    turned_copy(next(iter(samples(deduplicated).values())).image).save(copy)
    before = files(deduplicated)
    summary = run(deduplicated, near=(str(copy),))
    assert summary.counts == {"rows found": 4, "by near": 4}
    assert len(samples(deduplicated)) == 1
    assert (
        before["columns/hashes/00001.parquet"]
        != files(deduplicated)["columns/hashes/00001.parquet"]
    )


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
