import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from benchmarks.made_corpus import write_made_signal
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.summary import Summary
from pipeline import score, select
from pipeline.corpus import (
    iter_samples,
    list_signals,
    read_columns,
    read_manifest,
    read_rows,
    read_selection,
    write_columns,
    write_manifest,
    write_shard,
)
from pipeline.selecting.policy import Policy, load_policy, shipped_policies


@pytest.fixture
def scored(small_corpus: str) -> str:
    score.run(
        score.Config(root=small_corpus, signals=("caption", "image"), workers=Workers(local=True))
    )
    return small_corpus


def run(root: str, **settings: Any) -> Summary:
    return select.run(select.Config(root=root, **{"name": "test", **settings}))


def write_policy(folder: Path, **policy: Any) -> str:
    path = folder / "policy.toml"
    path.write_text(tomli_w.dumps(policy))
    return str(path)


RULES = [
    {"name": "too few words", "keep": "num_words >= 3", "source": "test"},
    {"name": "no face", "keep": "caption LIKE '%face%'"},
]


def test_the_first_rule_that_fails_is_the_reason(scored: str, tmp_path: Path) -> None:
    summary = run(scored, policy=write_policy(tmp_path, signals=["caption"], rules=RULES))
    captions = {
        row["uid"]: row["caption"]
        for shard in read_manifest(scored).shards
        for row in read_rows(scored, shard).to_pylist()
    }
    selection = read_selection(scored, "test").to_pylist()
    assert len(selection) == 24
    for row in selection:
        caption = captions[row["uid"]]
        short, no_face = len(caption.split()) < 3, "face" not in caption
        reason = "too few words" if short else "no face" if no_face else None
        assert (row["reason"], row["keep"]) == (reason, reason is None)
        assert row["weight"] == float(row["keep"])
    assert sum(summary.counts.values()) == 24
    assert summary.counts["kept"] == summary.num_out == sum(row["keep"] for row in selection)
    assert min(summary.counts.values()) > 0


def test_rows_are_in_key_order_and_failures_are_not_samples(scored: str) -> None:
    run(scored, where="true")
    uids = [
        row["uid"]
        for shard in read_manifest(scored).shards
        for row in read_rows(scored, shard).to_pylist()
        if row["status"] == "success"
    ]
    assert read_selection(scored, "test")["uid"].to_pylist() == uids


def test_null_is_dropped_with_the_reason(scored: str) -> None:
    summary = run(scored, where="exif <> ''")
    assert summary.num_out == 0
    assert set(read_selection(scored, "test")["reason"].to_pylist()) == {"not exif <> ''"}


def test_the_same_command_gives_the_same_bytes(scored: str) -> None:
    run(scored, where="num_words > 2")
    files = [Path(scored, "selections", f"test.{suffix}") for suffix in ("parquet", "toml")]
    before = [file.read_bytes() for file in files]
    run(scored, where="num_words > 2")
    assert [file.read_bytes() for file in files] == before


def test_a_dry_run_counts_as_the_run_does_and_writes_no_selection(scored: str) -> None:
    tried = run(scored, where="num_words > 2", dry_run=True)
    assert 0 < tried.num_out < 24
    assert not Path(scored, "selections").exists()
    assert run(scored, where="num_words > 2").counts == tried.counts


def test_thresholds_may_follow_from_the_whole_column(scored: str) -> None:
    where = "entropy >= (SELECT quantile_cont(entropy, 0.75) FROM image)"
    assert run(scored, where=where).num_out == 6


def test_windows_see_the_whole_corpus(scored: str) -> None:
    assert run(scored, where="count(*) OVER (PARTITION BY sha256) = 1").num_out == 24
    again = run(scored, where="count(*) OVER (PARTITION BY width) = 1", name="width")
    assert again.num_out == 0


def test_weights_are_kept_for_the_kept(scored: str, tmp_path: Path) -> None:
    rules = [{"name": "even", "keep": "num_words <> 2"}]
    run(scored, policy=write_policy(tmp_path, weight="num_words / 2", rules=rules))
    words = dict(zip(*read_columns(scored, "caption").select(["uid", "num_words"]), strict=True))
    for row in read_selection(scored, "test").to_pylist():
        assert row["weight"] == (words[pa.scalar(row["uid"])].as_py() / 2 if row["keep"] else 0)


def test_the_policy_is_kept_beside_the_selection(scored: str, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, title="a test", rules=RULES)
    summary = run(scored, policy=policy)
    record = tomllib.loads(Path(scored, "selections", "test.toml").read_text())
    assert record["corpus_digest"] == read_manifest(scored).digest
    assert record["policy_digest"] == load_policy(policy).digest
    assert record["policy"]["rules"][0] == RULES[0]
    assert {name: record["counts"].get(name, 0) for name in summary.counts} == summary.counts


def test_another_policy_under_the_same_name_needs_overwrite(scored: str) -> None:
    run(scored, where="num_words > 2")
    before = read_selection(scored, "test")
    with pytest.raises(ConflictError, match=r"another policy digest.*--overwrite"):
        run(scored, where="num_words > 3")
    assert read_selection(scored, "test").equals(before)
    run(scored, where="num_words > 3", overwrite=True)
    assert not read_selection(scored, "test").equals(before)


def test_rewording_a_source_is_not_another_policy() -> None:
    policy = Policy.model_validate({"rules": RULES})
    reworded = Policy.model_validate({"title": "x", "rules": [{**r, "source": "y"} for r in RULES]})
    swapped = Policy.model_validate({"rules": RULES[::-1]})
    assert policy.digest == reworded.digest != swapped.digest


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("num_wrods > 2", r"num_wrods > 2'.*not found.*num_words"),
        ("num_words >", r"num_words >'.*syntax error"),
        ("num_words + 1", r"num_words \+ 1' is INTEGER; expected .* true or false"),
        ("caption::INT > 2", r"Could not convert"),
    ],
)
def test_wrong_sql_is_one_line_that_names_it(scored: str, where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(scored, where=where)
    assert "\n" not in str(caught.value)
    assert not Path(scored, "selections", "test.parquet").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "no-such"}, r"'no-such': no such file.*shipped: .*laion-2b-en"),
        ({}, r"not said; give --policy .*clip-top-30.* or --where"),
        ({"policy": "laion-2b-en", "where": "true"}, r"both given; give one"),
        ({"where": "true", "memory_limit": "much"}, r"memory_limit 'much'"),
    ],
)
def test_settings_that_make_no_sense(scored: str, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(scored, **settings)


def test_a_policy_file_with_an_unknown_key_is_named(scored: str, tmp_path: Path) -> None:
    rules = [{"name": "a", "kep": "true"}]
    with pytest.raises(ConfigError, match=r"policy\.toml: rules\.0\.keep: Field required"):
        run(scored, policy=write_policy(tmp_path, rules=rules))


def test_missing_signals_name_the_command_that_scores_them(small_corpus: str) -> None:
    with pytest.raises(InputError, match=r"`carrara score .* --signals caption image`"):
        run(small_corpus, policy="datacomp-basic")


def test_a_half_scored_signal_is_missing(scored: str) -> None:
    Path(scored, "columns", "image", "manifest.json").unlink()
    with pytest.raises(InputError, match="not been scored: image"):
        run(scored, policy="datacomp-basic")


def test_scores_of_another_corpus_are_refused(scored: str, make_corpus: Any) -> None:
    make_corpus(scored, num_shards=1)
    with pytest.raises(InputError, match="scored on another corpus"):
        run(scored, where="num_words > 2")


@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_rule_cites_its_source_and_runs(scored: str, name: str) -> None:
    policy = load_policy(name)
    assert policy.title
    assert all(rule.source for rule in policy.rules)
    for signal in {*(policy.signals or ()), *policy.optional_signals} - set(list_signals(scored)):
        add_scores(scored, signal)
    summary = run(scored, policy=name)
    assert summary.num_in == 24
    assert summary.details["rules left out"] == []


def test_rules_of_optional_signals_wait_for_them(scored: str, tmp_path: Path) -> None:
    rules = [
        {"name": "short", "keep": "num_words >= 2"},
        {"name": "copy", "keep": "duplicate_of IS NULL", "needs": "duplicates"},
    ]
    optional = {"signals": ["caption"], "optional_signals": ["duplicates"], "rules": rules}
    policy = write_policy(tmp_path, **optional)
    without = run(scored, policy=policy)
    assert without.details["rules left out"] == ["copy"]
    assert "copy" not in without.counts
    add_scores(scored, "duplicates")
    with pytest.raises(ConflictError, match="another policy digest"):
        run(scored, policy=policy)
    with_it = run(scored, policy=policy, overwrite=True)
    assert with_it.details["rules left out"] == []
    assert with_it.counts["copy"] > 0
    assert with_it.num_out + with_it.counts["copy"] == without.num_out


def test_a_policy_of_rules_that_all_wait_is_an_error(scored: str, tmp_path: Path) -> None:
    rules = [{"name": "copy", "keep": "duplicate_of IS NULL", "needs": "duplicates"}]
    policy = write_policy(tmp_path, optional_signals=["duplicates"], signals=[], rules=rules)
    with pytest.raises(InputError, match=r"needs a signal that is not there .*duplicates"):
        run(scored, policy=policy)


@pytest.mark.parametrize("is_in_order", [True, False])
def test_a_rule_reads_the_signal_where_a_list_has_a_column_of_its_name(
    small_corpus: str, is_in_order: bool
) -> None:
    """As LAION's lists have LANGUAGE; columns that every shard has stay the shard's."""
    manifest = read_manifest(small_corpus)
    shards = []
    for shard in manifest.shards:
        rows = read_rows(small_corpus, shard)
        claimed = pa.array(["xx"] * rows.num_rows)
        rows = rows.append_column("LANGUAGE", claimed).append_column("mine", claimed)
        samples = list(iter_samples(small_corpus, shard))
        shards.append(write_shard(small_corpus, shard.name, samples, rows, {}))
    write_manifest(small_corpus, manifest.model_copy(update={"shards": shards}))
    here = Workers(local=True)
    score.run(score.Config(root=small_corpus, signals=("caption",), workers=here))
    if not is_in_order:
        for shard in shards:
            name = f"columns/caption/{shard.name}.parquet"
            table = pq.read_table(Path(small_corpus, name)).sort_by("uid")
            write_columns(small_corpus, "caption", shard.name, table)
        write_made_signal(small_corpus, "caption")
    assert run(small_corpus, name="a", where="language <> 'xx'").num_out > 0
    assert run(small_corpus, name="b", where="language = 'xx'").num_out == 0
    assert run(small_corpus, name="c", where="mine = 'xx'").num_out == 24
    assert run(small_corpus, name="d", where="width = 64 AND url LIKE 'https%'").num_out == 24


def test_scores_in_another_order_are_joined_by_uid(scored: str) -> None:
    in_order = run(scored, where="num_words > 2", name="before")
    before = read_selection(scored, "before")
    for shard in read_manifest(scored).shards:
        path = Path(scored, "columns", "caption", f"{shard.name}.parquet")
        table = pq.read_table(path)
        pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    write_made_signal(scored, "caption")
    assert run(scored, where="num_words > 2", name="after").counts == in_order.counts
    assert read_selection(scored, "after").equals(before)


@pytest.mark.parametrize("path", ["columns/caption/00001.parquet", "shards/00001.parquet"])
def test_what_is_read_is_held_against_its_digest(scored: str, path: str) -> None:
    file = Path(scored, path)
    table = pq.read_table(file)
    pq.write_table(table, file, compression="gzip")  # the same values, other bytes
    with pytest.raises(DamagedError, match=rf"{path}: missing, or not what its manifest says"):
        run(scored, where="num_words > 2")
    assert run(scored, where="num_words > 2", check_digests=False).num_in == 24


COLUMNS: dict[str, dict[str, Any]] = {
    "clip": {"clip_similarity": 0.3},
    "neighbours": {"mismatch": 0.1, "neg_clip_loss": -0.1},
    "image_based": {"num_targets_in_cluster": 2},
    "placeholder": {"num_urls": 1},
    "safety": {"nudity_exposed": 0.0},
}


def add_scores(root: str, signal: str) -> None:
    """Values for a signal whose model is not to hand here."""
    for shard in read_manifest(root).shards:
        rows = read_rows(root, shard, ["uid", "status"]).to_pylist()
        uids = [row["uid"] for row in rows if row["status"] == "success"]
        values = {name: [value] * len(uids) for name, value in COLUMNS.get(signal, {}).items()}
        if signal == "duplicates":  # every shard's second sample is a copy of its first
            copies = [None, uids[0], *[None] * (len(uids) - 2)]
            values = {"duplicate_of": copies, "in_heldout": [False] * len(uids)}
        write_columns(root, signal, shard.name, pa.table({"uid": uids, **values}))
    write_made_signal(root, signal)
