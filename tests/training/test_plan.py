"""The plan of a corpus and a model, and what runs achieved beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import carrara
from infra.errors import CarraraError, ConfigError, ConflictError, InputError
from infra.planning.rates import Rates, read_rates
from pipeline.corpus import Manifest
from training import plan
from training.plan import Config

REPOSITORY = Path(__file__).parents[2]
CLUSTER = str(REPOSITORY / "infra/deploy/ray/aws.plan.toml")
SMALL: dict[str, Any] = {"network": "uvit", "size": "S", "train_size": 64}
LOSSY = """
[machines.cpu]
count = 4
cores = 16
memory_gb = 32
network_gbps = 10
dollars_per_hour = 1
losses_per_hour = 0.5
"""


def planned(**settings: Any) -> dict[str, Any]:
    summary = plan.run(Config(**{"cluster": CLUSTER, **SMALL, **settings}))
    as_written: dict[str, Any] = json.loads(json.dumps(summary.as_json()))
    return as_written


def test_a_plan_has_every_stage_with_its_cost_and_its_bound() -> None:
    summary = planned(pairs=5.85e9)
    assert [row["stage"] for row in summary["table"]] == [
        *("download", "embed", "index", "score", "pack", "train", "all")
    ]
    for stage in summary["details"]["stages"].values():
        assert stage["hours"] > 0
        assert stage["dollars"] > 0
        assert stage["bound"] in stage["hours_by_resource"]
        assert 0 < stage["goodput"] <= 1


def test_ten_times_the_pairs_take_ten_times_as_long() -> None:
    small, large = (planned(pairs=n)["details"]["stages"] for n in (1e8, 1e9))
    for stage in ("download", "embed", "score", "pack", "train"):
        # Links rot on the way, and fewer are left of the longer list.
        assert large[stage]["hours"] == pytest.approx(10 * small[stage]["hours"], rel=0.02)
    # Each of ten times the vectors is held against three times the lists.
    assert large["index"]["hours"] > 20 * small["index"]["hours"]


def test_the_simulation_agrees_with_the_closed_form(tmp_path: Path) -> None:
    file = tmp_path / "lossy.toml"
    file.write_text(LOSSY)
    stages = planned(pairs=1e9, cluster=str(file))["details"]["stages"]
    for name in ("download", "train"):
        stage = stages[name]
        assert stage["goodput"] < 0.999
        assert stage["goodput_simulated"] == pytest.approx(stage["goodput"], rel=0.05)


def test_old_lists_give_fewer_pictures() -> None:
    fresh, old = (planned(pairs=1e9, age_months=months) for months in (0, 24))
    assert old["num_out"] == pytest.approx(fresh["num_out"] * 0.99**24, rel=0.01)
    rot = old["details"]["links_alive"]
    assert old["details"]["links_alive_simulated"] == pytest.approx(rot, abs=0.005)


@pytest.mark.parametrize(
    ("recall", "kind"), [(0.7, "SQ4"), (0.95, "SQ8"), (0.98, "SQfp16"), (0.999, "Flat")]
)
def test_a_higher_recall_takes_a_larger_index(recall: float, kind: str) -> None:
    details = planned(pairs=1e8, recall=recall)["details"]
    assert kind in details["index_kind"]
    assert details["index_bytes"] > 1e8 * 0.8 * 512 / 2


def test_without_a_size_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert carrara.run_command(["plan"]) == 2
    assert "--pairs" in capsys.readouterr().err


def test_a_corpus_gives_its_own_size(make_corpus: Callable[..., Manifest], tmp_path: Path) -> None:
    root = str(tmp_path / "corpus")
    manifest = make_corpus(root)
    assert planned(root=root)["num_in"] == sum(manifest.counts.values())


def test_what_was_predicted_stands_beside_what_was_achieved(
    make_corpus: Callable[..., Manifest], tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    manifest = make_corpus(str(root))
    record = {"stage": "pack", "num_in": manifest.num_samples, "num_out": 10, "seconds": 3.0}
    (root / "runs").mkdir()
    for time in ("20260101T000000.0", "20260102T000000.0"):
        text = json.dumps({**record, "seconds": 1.0 if "0101" in time else 3.0})
        (root / "runs" / f"{time}-pack.json").write_text(text)
    summary = planned(root=str(root), achieved=True)
    (row,) = summary["table"]
    assert (row["stage"], row["achieved"]) == ("pack", "3 s")  # the newest
    assert row["achieved / predicted"] == pytest.approx(2, abs=0.1)  # 1.5 s, as it is so small


def test_a_corpus_where_nothing_ran_is_said_so(
    make_corpus: Callable[..., Manifest], tmp_path: Path
) -> None:
    make_corpus(str(tmp_path / "corpus"))
    with pytest.raises(InputError, match="no run of a stage"):
        planned(root=str(tmp_path / "corpus"), achieved=True)


def test_calibration_wants_a_place_for_what_it_finds() -> None:
    with pytest.raises(ConfigError, match="--rates"):
        planned(calibrate=True)


def test_calibrated_rates_are_saved_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.planning import calibration

    monkeypatch.setattr(calibration, "STEP_S", 0.05)
    file = str(tmp_path / "rates.toml")
    planned(calibrate=True, rates=file, encoder="Carrara-S/emoji_clipart")
    measured = read_rates(file)
    assert measured.machine != Rates().machine
    for name in ("fetch_ms", "resize_ms", "write_ms", "decode_ms", "train_core_gflops"):
        assert getattr(measured, name) not in (0, getattr(Rates(), name)), name
    again = planned(pairs=1e6, rates=file, cluster=None)
    assert again["details"]["rates"] == measured.model_dump()
    with pytest.raises(ConflictError, match="--overwrite measures anew"):
        planned(calibrate=True, rates=file, encoder="Carrara-S/emoji_clipart")
    assert read_rates(file) == measured
    planned(calibrate=True, overwrite=True, rates=file, encoder="Carrara-S/emoji_clipart")
    assert read_rates(file) != measured


def no_calibration(*_: object) -> Rates:
    raise AssertionError("measured before it was known to be of use")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"cluster": "nowhere.toml"}, "--cluster"),
        ({"rates": "file/rates.toml"}, "can.t be written"),
    ],
)
def test_nothing_is_measured_for_a_mistake(
    settings: dict[str, str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.planning import calibration

    monkeypatch.setattr(calibration, "calibrate", no_calibration)
    (tmp_path / "file").touch()
    places = {name: str(tmp_path / place) for name, place in settings.items()}
    with pytest.raises(CarraraError, match=error):
        planned(calibrate=True, **{"rates": str(tmp_path / "rates.toml"), **places})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_plan_is_the_same_twice() -> None:
    first, second = planned(pairs=1e9), planned(pairs=1e9)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
