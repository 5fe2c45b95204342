import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from benchmarks.made_corpus import write_made_signal
from infra.cluster import Workers
from infra.errors import DamagedError, InputError
from infra.summary import Summary
from pipeline import pack, report, score, select
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_manifest,
    read_rows,
    read_selection,
    write_columns,
    write_manifest,
    write_shard,
)
from pipeline.pages import charts


@pytest.fixture
def curated(small_corpus: str) -> str:
    here = Workers(local=True)
    score.run(score.Config(root=small_corpus, signals=("caption", "image"), workers=here))
    select.run(select.Config(root=small_corpus, name="long", where="num_words > 2"))
    return small_corpus


class Page(HTMLParser):
    """What a reader sees and what a browser would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.headings, self.text, self.images = html, list[str](), "", list[str]()
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())
            self.open.pop()
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"


def run(root: str, **settings: Any) -> Page:
    summary = report.run(report.Config(root=root, **settings))
    return Page(Path(summary.outputs["page"]).read_text(encoding="utf-8"))


def write_png(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32), "teal").save(path)
    return str(path)


@pytest.fixture
def trained(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    write_png(folder / "samples" / "captions.png")
    write_png(folder / "samples" / "strip.png")
    lines = [{"step": step, "loss": 1 / step, "images_per_s": 99.0} for step in range(1, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_bare_corpus_has_no_empty_sections(small_corpus: str) -> None:
    page = run(small_corpus)
    assert page.headings == ["What was kept, what went, and why", "Failures", "Domains", "Samples"]
    assert "Of 26 rows in the list, 24 became samples" in page.text


def test_every_section_whose_input_is_there_is_shown(
    curated: str, trained: str, tmp_path: Path
) -> None:
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=curated, output=packed, selection="long"))
    query = write_png(tmp_path / "query.png")
    write_summary(curated, "download")
    page = run(curated, packed=packed, run=trained, query=(query,))
    assert page.headings == [
        "What the model paints",
        "What was kept, what went, and why",
        "The stages",
        "What it took",
        "Failures",
        "Domains",
        "Languages",
        "Kept",
        "Dropped",
        "The scores and where the rules cut",
        "Searching it",
        "Training",
    ]
    for digest in (read_manifest(curated).digest, read_manifest(packed).digest):
        assert digest in page.text
    assert "over 29 steps" in page.text


def test_the_page_asks_the_network_for_nothing(curated: str, trained: str) -> None:
    page = run(curated, run=trained)
    assert page.images
    assert all(source.startswith("data:image/") for source in page.images)
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|<script|<link""", page.html)


def test_the_funnel_adds_up(curated: str) -> None:
    page = run(curated)
    kept = select.run(select.Config(root=curated, name="again", where="num_words > 2")).num_out
    assert "rows in the list 26 failed to download −2 pictures with captions 24" in page.text
    assert f"not num_words > 2 --where −{24 - kept} kept {kept}" in page.text


def test_dropped_pictures_show_the_score_that_dropped_them(curated: str) -> None:
    page = run(curated)
    assert "grinning face num words 2" in page.text
    assert re.search(r"num_words num_words > 2 drops \d+ of 24 3 ", page.text)


def test_samples_are_looked_up_by_uid(curated: str) -> None:
    rows = read_rows(curated, read_manifest(curated).shards[0]).to_pylist()
    page = run(curated, show=(rows[0]["uid"],))
    assert "Looked up" in page.headings
    assert "grinning face not num_words > 2" in page.text
    with pytest.raises(InputError, match="no sample has the uid abc"):
        run(curated, show=("abc",))


def test_captions_are_text_never_markup(tmp_path: Path, make_corpus: Any) -> None:
    root = str(tmp_path / "corpus")
    make_corpus(root, captions={0: "<script>alert(1)</script> & <b>"})
    page = run(root)
    assert "<script>" not in page.html
    assert "<script>alert(1)</script> & <b>" in page.text


def test_a_second_run_of_a_finished_stage_does_not_hide_the_first(curated: str) -> None:
    write_summary(curated, "download", seconds=12.3, name="1")
    write_summary(curated, "download", seconds=0.1, name="2")
    page = run(curated)
    assert re.search(r"download 26 24 rows 12\.3", page.text)


def test_pictures_of_samples_and_strips_can_be_given_by_path(curated: str, tmp_path: Path) -> None:
    path = write_png(tmp_path / "else.png")
    assert "From noise to picture" in run(curated, strip=(path,)).text
    with pytest.raises(InputError, match=r"gone\.png: no such picture"):
        run(curated, samples=(str(tmp_path / "gone.png"),))
    with pytest.raises(InputError, match=r"query\.html: not a picture"):
        run(curated, query=("query.html",))


def test_several_selections_need_a_choice(curated: str) -> None:
    select.run(select.Config(root=curated, name="all", where="true"))
    with pytest.raises(InputError, match="several selections: all, long"):
        run(curated)
    assert "kept 24" in run(curated, selection="all").text


def test_thumbnails_are_small_whatever_the_pictures(curated: str) -> None:
    import base64

    for source in run(curated).images:
        data = base64.b64decode(source.partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) <= 128


def test_failures_are_told_by_class_and_host(curated: str) -> None:
    text = run(curated).text
    assert "HTTP 404 2 7.7% example.org 2" in text
    kept = read_selection(curated, "long")["keep"].to_pylist().count(True)
    assert f"example.org 26 24 {kept}" in text


def test_rows_that_repeat_a_sample_are_not_kept_twice(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "corpus")
    manifest = make_corpus(root, num_shards=1)
    (shard,) = manifest.shards
    rows = read_rows(root, shard).to_pylist()
    rows[-1] |= {"uid": rows[0]["uid"], "error_message": "duplicate"}
    samples = list(iter_samples(root, shard))
    table = pa.Table.from_pylist(rows, read_rows(root, shard).schema)
    repeated = write_shard(root, shard.name, samples, table, {})
    write_manifest(root, manifest.model_copy(update={"shards": [repeated]}))
    select.run(select.Config(root=root, name="all", where="true"))
    assert "example.org 13 12 12" in run(root).text


def test_the_price_of_what_was_kept_follows_from_the_records(curated: str) -> None:
    write_summary(curated, "download", seconds=90, name="1")
    write_summary(curated, "score", seconds=270, name="2")
    kept = read_selection(curated, "long")["keep"].to_pylist().count(True)
    goodput = report.run(report.Config(root=curated, dollars_per_hour=2.0))
    page = Page(Path(goodput.outputs["page"]).read_text())
    hours = 0.1 / kept * 1e6
    assert f"hours a million kept {charts.number(hours)}" in page.text
    assert f"dollars a million kept, at 2 an hour {charts.number(2 * hours)}" in page.text


def test_the_price_has_the_hours_of_runs_that_were_killed(curated: str) -> None:
    """On spot machines they are most of them; the run after them goes on where they stopped."""
    write_summary(curated, "download", seconds=90, name="2")
    killed = {"stage": "download", "state": "running", "host": "gone"}
    killed |= {"started": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:04:30Z"}
    Path(curated, "runs", "1.json").write_text(json.dumps(killed))
    kept = read_selection(curated, "long")["keep"].to_pylist().count(True)
    assert f"hours a million kept {charts.number(0.1 / kept * 1e6)}" in run(curated).text


def test_a_selection_that_is_not_there_is_named(curated: str) -> None:
    with pytest.raises(InputError, match=r"no selection 'typo' \(there are: long\)"):
        run(curated, selection="typo")


@pytest.mark.parametrize("name", ["shards/00001.parquet", "columns/caption/00000.parquet"])
def test_a_parquet_that_cannot_be_read_is_named(curated: str, name: str) -> None:
    Path(curated, name).write_bytes(b"not a parquet")
    with pytest.raises(DamagedError, match=name.rpartition("/")[2]) as caught:
        run(curated)
    assert "\n" not in str(caught.value)


def test_a_picture_of_a_format_that_no_page_shows_is_refused(curated: str, tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(path, "PPM")
    with pytest.raises(InputError, match=r"other\.png: not a picture"):
        run(curated, query=(str(path),))


def test_the_largest_groups_of_copies_are_shown(small_corpus: str) -> None:
    manifest = read_manifest(small_corpus)
    uids = [
        row["uid"]
        for shard in manifest.shards
        for row in read_rows(small_corpus, shard, ["uid", "status"]).to_pylist()
        if row["status"] == "success"
    ]
    write_duplicates(small_corpus, groups=[uids[3:12], uids[20:22]])
    page = run(small_corpus)
    assert "9 samples are copies of 2 others" in page.text
    assert "9 alike (perceptual)" in page.text
    assert len(page.images) == 24 + 8 + 2  # the samples, and of each group at most eight


def write_duplicates(root: str, groups: list[list[str]]) -> None:
    """Columns as `carrara dedup` leaves them."""
    manifest = read_manifest(root)
    group_of = {uid: group[0] for group in groups for uid in group}
    for shard in manifest.shards:
        rows = read_rows(root, shard, ["uid", "status"])
        rows = rows.filter(pc.equal(rows["status"], "success"))
        uids = rows["uid"].to_pylist()
        table = pa.table(
            {
                "uid": uids,
                "duplicate_group": [group_of.get(uid) for uid in uids],
                "duplicate_of": [
                    group_of[uid] if group_of.get(uid, uid) != uid else None for uid in uids
                ],
                "duplicate_evidence": ["perceptual" if uid in group_of else None for uid in uids],
                "in_heldout": pa.nulls(len(uids), pa.bool_()),
            }
        )
        write_columns(root, "duplicates", shard.name, table)
    write_made_signal(root, "duplicates")


def write_summary(root: str, stage: str, seconds: float = 1.0, name: str = "1") -> None:
    summary = Summary(stage=stage, num_in=26, num_out=24, unit="rows", seconds=seconds)
    path = Path(root, "runs", f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary.as_json()))
