"""What a dry run says, against the same counted by hand; and the page that shows it."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.cluster import Workers
from infra.errors import DamagedError
from infra.summary import Summary
from pipeline import score, select
from pipeline.corpus import read_columns, read_manifest, read_rows
from pipeline.selecting.dry_run import NUM_NEAR, DryRun, dry_run
from pipeline.selecting.policy import Policy
from pipeline.selecting.samples_sql import open_samples
from pipeline.selecting.thresholds import Threshold, find_thresholds

RULES = [
    {"name": "too few words", "keep": "num_words >= 3"},
    {"name": "no face", "keep": "caption LIKE '%face%'"},
    {"name": "many characters", "keep": "NOT num_characters > 20"},
]


@pytest.fixture
def scored(small_corpus: str) -> str:
    config = score.Config(root=small_corpus, signals=("caption",), workers=Workers(local=True))
    score.run(config)
    return small_corpus


def samples(root: str) -> list[dict[str, Any]]:
    shards = read_manifest(root).shards
    rows = pa.concat_tables([read_rows(root, shard) for shard in shards])
    columns = {row["uid"]: row for row in read_columns(root, "caption").to_pylist()}
    return [row | columns[row["uid"]] for row in rows.to_pylist() if row["status"] == "success"]


def verdicts(row: dict[str, Any]) -> list[bool]:
    """Which of RULES drop it."""
    return [row["num_words"] < 3, "face" not in row["caption"], row["num_characters"] > 20]


def found(root: str, *keeps: str) -> DryRun:
    rules = [{"name": keep, "keep": keep} for keep in keeps] or RULES
    policy = Policy.model_validate({"rules": rules})
    manifest = read_manifest(root)
    connection = open_samples(root, manifest, ["caption"], "1GB", "")
    return dry_run(connection, policy, manifest.num_samples)


def test_each_rule_alone_together_and_in_its_place_is_counted(scored: str) -> None:
    result = found(scored)
    drops = [verdicts(row) for row in samples(scored)]
    for i in range(3):
        assert result.num_alone(i) == sum(one[i] for one in drops)
        assert result.num_only(i) == sum(one[i] and sum(one) == 1 for one in drops)
        assert result.num_first(i) == sum(one[i] and not any(one[:i]) for one in drops)
        for j in range(3):
            assert result.num_both(i, j) == sum(one[i] and one[j] for one in drops)
    assert result.num_kept == sum(not any(one) for one in drops)
    assert result.num_samples == 24
    assert min(result.num_alone(i) for i in range(3)) > 0


def test_boundaries_are_the_nearest_that_the_rule_decides(scored: str) -> None:
    result = found(scored, "num_characters >= 14", "num_words < 4")
    rows = [row for row in samples(scored) if row["num_words"] < 4]
    boundary = result.boundaries[0]
    assert boundary.threshold == Threshold("num_characters", ">=", "14")
    kept = sorted(row["num_characters"] for row in rows if row["num_characters"] >= 14)
    dropped = sorted(row["num_characters"] for row in rows if row["num_characters"] < 14)[::-1]
    assert [one.score for one in boundary.kept] == kept[:NUM_NEAR]
    assert [one.score for one in boundary.dropped] == dropped[:NUM_NEAR]
    assert kept
    assert dropped
    assert {one.limit for one in (*boundary.kept, *boundary.dropped)} == {14}


def test_each_comparison_of_a_rule_has_its_own_boundary(scored: str) -> None:
    result = found(scored, "num_words >= 3 AND num_characters <= 20")
    words, characters = result.boundaries
    assert {one.score for one in words.dropped} == {2}
    assert all((one.score or 0) > 20 for one in characters.dropped)
    assert characters.dropped


def test_where_no_rule_decides_alone_what_others_drop_too_is_shown(scored: str) -> None:
    first, second = found(scored, "num_words >= 3", "num_words >= 4").boundaries
    assert not first.is_decisive
    assert {one.score for one in first.dropped} == {2}
    assert second.is_decisive
    assert {one.score for one in second.dropped} == {3}


def test_a_rule_without_a_number_shows_what_only_it_drops(scored: str) -> None:
    (boundary,) = found(scored, "caption NOT LIKE '%face%'").boundaries
    faces = {row["uid"] for row in samples(scored) if "face" in row["caption"]}
    assert boundary.kept == []
    assert {one.uid for one in boundary.dropped} <= faces
    assert len(boundary.dropped) == min(len(faces), NUM_NEAR) > 0


@pytest.mark.parametrize(
    ("rule", "thresholds"),
    [
        ("num_words > 2 -- so", [("num_words", ">", "2")]),
        ("3 < num_words", [("num_words", ">", "3")]),
        ("NOT (num_words >= 9)", [("num_words", "<", "9")]),
        ("num_words BETWEEN 1 AND 7.5", [("num_words", ">=", "1"), ("num_words", "<=", "7.5")]),
        ("language = 'en' AND caption > 'a'", []),
        ("NOT is_file_name", []),
        ("DATE '2020-01-01' > DATE '2019-01-01'", []),
        (
            "num_words > (SELECT avg(num_words) FROM caption WHERE num_words > 1)",
            [("num_words", ">", None)],
        ),
        ("num_words / num_characters > 0.1", [("(num_words / num_characters)", ">", "0.1")]),
    ],
)
def test_thresholds_are_found_in_any_expression(
    scored: str, rule: str, thresholds: list[tuple[str, str, str | None]]
) -> None:
    connection = open_samples(scored, read_manifest(scored), ["caption"], "1GB", "")
    result = find_thresholds(connection, rule)
    assert [(one.score, one.operator) for one in result] == [one[:2] for one in thresholds]
    for one, (_, _, limit) in zip(result, thresholds, strict=True):
        assert limit in (None, one.limit)


def run(root: str, **settings: Any) -> Summary:
    config = select.Config(root=root, name="tried", dry_run=True, **settings)
    return select.run(config)


def test_the_page_shows_both_sides_of_a_threshold_offline(scored: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    summary = run(scored, where="num_words >= 3", page=str(page))
    html = page.read_text()
    assert summary.outputs == {"page": str(page)}
    assert "Just kept" in html
    assert "Just dropped" in html
    assert html.count("<img") == html.count('src="data:image/jpeg;base64,') > 10
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert "<script" not in html
    assert not Path(scored, "selections").exists()


def test_the_page_goes_beside_the_corpus_and_is_the_same_twice(scored: str) -> None:
    page = Path(run(scored, where="num_words >= 3").outputs["page"])
    assert page == Path(scored, "dry-run.html")
    before = page.read_bytes()
    run(scored, where="num_words >= 3")
    assert page.read_bytes() == before


def test_only_the_pictures_shown_are_read(scored: str) -> None:
    """Tars whose other bytes are gone."""
    run(scored, where="num_words >= 3")
    whole = Path(scored, "dry-run.html").read_bytes()
    rows = samples(scored)
    shown = {
        one.uid
        for boundary in found(scored, "num_words >= 3").boundaries
        for one in (*boundary.kept, *boundary.dropped)
    }
    for shard in read_manifest(scored).shards:
        tar = Path(scored, "shards", f"{shard.name}.tar")
        data, holes = tar.read_bytes(), bytearray(tar.stat().st_size)
        for row in rows:
            if row["uid"] in shown and row["key"].startswith(shard.name):
                span = slice(row["image_offset"], row["image_offset"] + row["image_size"])
                holes[span] = data[span]
        tar.write_bytes(holes)
    run(scored, where="num_words >= 3")
    assert Path(scored, "dry-run.html").read_bytes() == whole


def test_a_tar_that_is_gone_is_named(scored: str) -> None:
    Path(scored, "shards", "00001.tar").unlink()
    with pytest.raises(DamagedError, match=r"00001\.tar: damaged \(missing\)"):
        run(scored, where="num_words >= 3")


def test_the_overlap_is_told_on_the_terminal_too(scored: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    lines = [f'[[rules]]\nname = "{one["name"]}"\nkeep = "{one["keep"]}"\n' for one in RULES]
    policy.write_text("\n".join(lines))
    summary = run(scored, policy=str(policy))
    drops = [verdicts(row) for row in samples(scored)]
    both = sum(one[0] and one[1] for one in drops)
    assert summary.table[0]["% with 2"] == round(100 * both / 24, 1)
    assert summary.details["keep rate"] == round(summary.num_out / 24, 4)
