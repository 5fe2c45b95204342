"""A full disk and a store that fails half its writes: which scores are kept."""

import shutil
from collections.abc import Callable
from pathlib import Path

from infra import storage
from infra.cluster import Workers
from pipeline import score, verify
from pipeline.corpus import Manifest
from tests.pipeline import full_disk
from tests.pipeline.failing_store import FailingStore, until_it_ends


def config(root: str) -> score.Config:
    return score.Config(root=root, signals=score.CHEAP, workers=Workers(local=True))


def test_a_full_disk_costs_the_scores_that_do_not_fit(small_corpus: str, tmp_path: Path) -> None:
    shutil.copytree(small_corpus, tmp_path / "held")
    score.run(config(small_corpus))
    whole = full_disk.digests(Path(small_corpus))
    arguments = ["score", str(tmp_path / "disk"), "--signals", *score.CHEAP, "--local"]
    attempts = full_disk.fill(tmp_path, 12 << 10, arguments)
    full_disk.check_told_and_kept(attempts, whole, besides=("runs/",))
    assert any("of 6 shards failed" in attempt.said for attempt in attempts)
    done = full_disk.digests(tmp_path / "done")
    assert {path: done[path] for path in done if not path.startswith("runs/")} == whole


def test_a_store_that_fails_half_its_writes_keeps_the_scores_it_took(
    small_corpus: str,
    s3_bucket: str,
    failing_store: FailingStore,
    make_corpus: Callable[..., Manifest],
) -> None:
    score.run(config(small_corpus))
    root = f"{s3_bucket}/corpus"
    make_corpus(root)

    def kept() -> set[str]:
        return {path for path in storage.list_files(f"{root}/columns") if "/." not in path}

    failing_store.where = "/"
    until_it_ends(failing_store, lambda: score.run(config(root)), kept)
    for path in kept():
        assert (
            storage.read_bytes(f"{root}/columns/{path}")
            == Path(small_corpus, "columns", path).read_bytes()
        )
    assert verify.run(verify.Config(root=root)).counts["columns intact"] == 6
