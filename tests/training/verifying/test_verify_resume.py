"""verify-resume: what it compares, and one real job that is killed."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra.cluster import Workers
from infra.errors import ConflictError, ShortfallError
from training.log import add_event
from training.verify_resume import Config, run
from training.verifying import trials
from training.verifying.comparison import Trace, compare
from training.verifying.trials import TRIALS, Struck, Trial, checked

TRACE = Trace(
    samples=["a", "b", "c"],
    losses=[(1.0, 0.1), (0.5, 0.2), (0.25, 0.3)],
    weights={"model.safetensors": "x", "ema.safetensors": "y"},
    num_workers=2,
    resumed_at=[],
)


def test_same_run_has_no_fault() -> None:
    found = compare(replace(TRACE, resumed_at=[2]), TRACE, same_count=True)
    assert found.faults == []
    assert found.row()["losses"] == "same bits"
    assert found.row()["resumed at"] == "2"


def test_first_step_that_differs_is_named() -> None:
    struck = replace(
        TRACE,
        samples=["a", "b", "d"],
        losses=[(1.0, 0.1), (0.5000001, 0.2), (0.25, 0.3)],
        weights=TRACE.weights | {"ema.safetensors": "z"},
    )
    found = compare(struck, TRACE, same_count=True)
    assert found.faults == [
        "other samples from step 3 on",
        "other losses from step 2 on",
        "other bytes at the end in ema.safetensors",
    ]
    assert found.row()["losses"] == "to 2e-07"


def test_steps_that_are_missing_are_a_fault() -> None:
    short = replace(TRACE, samples=TRACE.samples[:2], losses=TRACE.losses[:2])
    assert "other samples from step 3 on" in compare(short, TRACE, same_count=True).faults


def test_another_number_of_workers_must_meet_the_same_samples_alone() -> None:
    other = replace(TRACE, losses=[(1.0, 0.1), (0.6, 0.2), (0.25, 0.3)], weights={})
    assert compare(other, TRACE, same_count=False).faults == []
    swapped = replace(other, samples=["b", "a", "c"])
    assert compare(swapped, TRACE, same_count=False).faults == ["other samples from step 1 on"]


def test_job_that_is_killed_goes_on_bit_for_bit(
    shared_corpus: str, tiny_text_encoder: str, tmp_path: Path
) -> None:
    config = Config(
        root=shared_corpus,
        scratch=str(tmp_path / "scratch"),
        encoder=tiny_text_encoder,
        num_steps=50,
        checkpoint_every=5,
        num_kills=1,
        workers=Workers(local=True),
    )
    summary = run(config)
    assert [row["trial"] for row in summary.table] == ["undisturbed", "job killed"]
    assert str(summary.table[1]["killed"]).startswith("the job after ")
    assert summary.table[1]["losses"] == "same bits"
    assert summary.table[1]["weights"] == "same bytes"
    assert summary.shortfall == ""
    assert not (tmp_path / "scratch").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_worker_that_is_killed_on_ray_is_replaced_and_goes_on_bit_for_bit(
    shared_corpus: str, tiny_text_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other trials begin Ray three times more, and are the same code as without it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(trials, "TRIALS", TRIALS[:2])
    config = Config(
        root=shared_corpus,
        scratch=str(tmp_path / "scratch"),
        encoder=tiny_text_encoder,
        num_steps=60,
        checkpoint_every=5,
        num_kills=1,
        workers=Workers(num_workers=2, cpus_per_worker=0.5),
    )
    summary = run(config)
    undisturbed, struck = summary.table
    assert (undisturbed["trial"], struck["trial"]) == ("undisturbed", "workers killed")
    assert undisturbed["workers"] == struck["workers"] == 2
    assert (undisturbed["killed"], undisturbed["resumed at"]) == ("-", "-")
    assert str(struck["killed"]).startswith("a worker after ")
    assert 0 < int(str(struck["resumed at"])) < 60
    assert (struck["steps"], struck["samples"]) == (60, "same")
    assert (struck["losses"], struck["weights"]) == ("same bits", "same bytes")
    assert summary.shortfall == ""


@pytest.mark.parametrize(
    ("steps", "starts", "why"),
    [
        ([], ["start"], "ended before anything could be killed"),
        ([40], ["start"], "was struck when nothing was left"),
        ([40], ["start", "resume"], None),
    ],
)
def test_a_trial_that_shows_nothing_is_none(
    tmp_path: Path, steps: list[int], starts: list[str], why: str | None
) -> None:
    config = Config(root="corpus", scratch=str(tmp_path), num_steps=40)
    trial, struck = Trial(config, TRIALS[1], {}), Struck("a worker", steps)
    for event in starts:
        add_event(trial.url, event, step=0)
    if why is None:
        assert checked(trial, struck) is struck
    else:
        with pytest.raises(ShortfallError, match=f"{why}.*raise --num-steps, which is 40"):
            checked(trial, struck)


def test_place_that_is_not_empty_is_left_alone(shared_corpus: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConflictError, match="not empty"):
        run(Config(root=shared_corpus, scratch=str(tmp_path)))
