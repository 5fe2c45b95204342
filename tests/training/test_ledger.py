"""The ledger's answers against the batches themselves."""

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError, InputError
from pipeline import forget, select, why
from pipeline.corpus import read_manifest, read_selection
from training import train
from training.config import Config
from training.data import make_stream
from training.ledger import Appearances, appearances
from training.record import RunRecord, begin

BATCH_SIZE = 7
NUM_STEPS = 9  # 63 samples of 24, or of the 21 and fewer that a selection keeps


@pytest.fixture
def root(shared_corpus: str, tmp_path: Path) -> str:
    root = str(shutil.copytree(shared_corpus, tmp_path / "corpus"))
    select.run(select.Config(root=root, name="long", where="length(caption) > 12"))
    return root


@pytest.fixture(params=[None, "long"])
def config(request: pytest.FixtureRequest, root: str, tiny_config: Callable[..., Config]) -> Config:
    """Of a run that has come to its last checkpoint."""
    config = tiny_config(
        root=root, batch_size=BATCH_SIZE, selection=request.param, seed=3, shuffle_shards=1
    )
    digest = read_manifest(root).digest
    begin(RunRecord(config=config, corpus_digest=digest, encoder_digest="0"))
    for step in (4, NUM_STEPS):
        url = storage.join(config.run, "checkpoints", f"step-{step:06d}", "checkpoint.json")
        storage.publish_text(url, f'{{"step": {step}}}')
    Path(config.run, "checkpoints", "step-000010").mkdir()  # not written to its end
    return config


def steps_by_uid(config: Config, num_steps: int = NUM_STEPS) -> dict[str, list[int]]:
    stream = make_stream(config)
    steps = defaultdict(list)
    for step in range(num_steps):
        for uid in stream.batch(step, range(config.batch_size)).uids:
            steps[uid].append(step)
    return steps


def test_it_tells_what_the_batches_held(config: Config) -> None:
    steps = steps_by_uid(config)
    num = len(steps)
    for uid, theirs in steps.items():
        assert appearances(config.run, uid) == Appearances(
            num_steps=NUM_STEPS,
            num_epochs=NUM_STEPS * BATCH_SIZE / num,
            num_times=len(theirs),
            first_step=theirs[0],
            last_step=theirs[-1],
        )
    assert appearances(config.run, "0" * 32).num_times == 0


def test_why_tells_what_a_training_met(root: str, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(root=root, selection="long", num_steps=6, checkpoint_every=6)
    train.run(config)
    steps = steps_by_uid(config, num_steps=6)

    def told(uid: str) -> tuple[dict[str, Any], str]:
        summary = why.run(why.Config(root=root, sample=uid, run=(config.run,)))
        (row,) = cast(list[dict[str, dict[str, Any]]], summary.details["rows"])
        return row["trained"][config.run], str(summary.table[-1]["is"])

    for uid, theirs in steps.items():
        found, _ = told(uid)
        expected = {"num_times": len(theirs), "first_step": theirs[0], "last_step": theirs[-1]}
        assert found.items() >= expected.items()
    selection = read_selection(root, "long").to_pylist()
    dropped = [row["uid"] for row in selection if not row["keep"]]
    assert dropped
    found, text = told(dropped[0])
    assert (found["num_times"], found["first_step"], found["last_step"]) == (0, None, None)
    assert text.startswith("never up to the checkpoint of step 6 ")


def test_it_still_tells_of_what_was_taken_down_since(config: Config) -> None:
    steps = steps_by_uid(config)
    uids = sorted(steps)
    for uid in (uids[0], uids[-1]):  # one takedown after the other
        forget.run(forget.Config(root=config.root, uid=(uid,), workers=Workers(local=True)))
    for uid in uids:
        found = appearances(config.run, uid)
        assert (found.num_times, found.first_step) == (len(steps[uid]), steps[uid][0])


def test_a_corpus_that_changed_otherwise_is_no_witness(config: Config) -> None:
    manifest = Path(config.root, "manifest.json")
    manifest.write_text(manifest.read_text().replace('"num_samples": 12', '"num_samples": 11', 1))
    with pytest.raises(ConflictError, match="another state of the corpus"):
        appearances(config.run, "0" * 32)


def test_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training run here"):
        appearances(str(tmp_path), "0" * 32)


def test_it_needs_no_torch() -> None:
    code = "import sys, training.ledger; print({'torch', 'ray'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
