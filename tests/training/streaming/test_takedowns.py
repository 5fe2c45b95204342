"""`carrara forget` while a run goes on, and between its beginnings: what is left out, from when,
and what stands in its place."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra import storage
from infra.cluster import Workers
from infra.errors import InputError
from pipeline import forget, select
from pipeline.corpus import read_manifest
from training import data
from training.config import Config
from training.data import SampleStream, make_stream
from training.ledger import appearances
from training.record import RunRecord, begin, continuing, holds
from training.streaming.ahead import prefetched
from training.streaming.batch import StreamSettings

BATCH_SIZE = 6
NUM_STEPS = 20


@pytest.fixture
def root(shared_corpus: str, tmp_path: Path) -> str:
    root = str(shutil.copytree(shared_corpus, tmp_path / "corpus"))
    where = "length(caption) > 12"
    select.run(select.Config(root=root, name="long", where=where))
    return root


@pytest.fixture(params=[None, "long"])
def config(request: pytest.FixtureRequest, root: str, tiny_config: Callable[..., Config]) -> Config:
    """Of a run with a checkpoint at its 20th step."""
    config = tiny_config(
        root=root, batch_size=BATCH_SIZE, selection=request.param, held_out=0.0, shuffle_shards=1
    )
    begin(RunRecord(config=config, corpus_digest=digest_of(root), encoder_digest="0"))
    url = storage.join(config.run, "checkpoints", f"step-{NUM_STEPS:06d}", "checkpoint.json")
    storage.publish_text(url, f'{{"step": {NUM_STEPS}}}')
    return config


def digest_of(root: str) -> str:
    return read_manifest(root).digest


def take_down(root: str, *uids: str) -> None:
    forget.run(forget.Config(root=root, uid=uids, workers=Workers(local=True)))


def batches(config: Config, born: str, steps: range) -> list[list[str]]:
    """uids of each step, as a run takes them that is taken up at the first one."""
    stream = make_stream(config, (born,))
    with prefetched(stream, steps, range(BATCH_SIZE)) as ready:
        return [batch.uids for batch in ready]


def test_a_run_taken_up_after_a_takedown_leaves_it_out_and_all_others_in_place(
    config: Config,
) -> None:
    born = digest_of(config.root)
    before = batches(config, born, range(NUM_STEPS))
    gone = set(before[3][:2]) | {before[5][0]}
    take_down(config.root, *gone)
    after = batches(config, born, range(10, NUM_STEPS))
    assert any(uid in gone for uids in before[10:] for uid in uids)
    for old, new in zip(before[10:], after, strict=True):
        for was, now in zip(old, new, strict=True):
            assert now not in gone
            assert now == was or was in gone
    assert after == batches(config, born, range(10, NUM_STEPS))


def test_a_run_under_way_leaves_it_out_from_the_next_step_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "LOOK_EVERY_S", 0.0)
    born = digest_of(config.root)
    plain = batches(config, born, range(NUM_STEPS))
    stream = make_stream(config, (born,))
    with prefetched(stream, range(NUM_STEPS), range(BATCH_SIZE), depth=4) as ready:
        met = [next(ready).uids for _ in range(4)]
        gone = plain[4][0]  # in a batch that is made already, and waits
        take_down(config.root, gone)
        stream.follow()
        met += [batch.uids for batch in ready]
    assert met[:4] == plain[:4]
    assert all(gone not in uids for uids in met[4:])
    # As if the run had been taken up anew at that step.
    assert met[4:] == batches(config, born, range(4, NUM_STEPS))
    # And the ledger knows: of the one that went, of those that stood in, and of all others.
    times = defaultdict(list)
    for step, uids in enumerate(met):
        for uid in uids:
            times[uid].append(step)
    assert appearances(config.run, gone).left_out_from == 4
    for uid in {gone, *times}:
        found = appearances(config.run, uid)
        assert (found.num_times, found.first_step, found.last_step) == (
            len(times[uid]),
            min(times[uid], default=None),
            max(times[uid], default=None),
        )


def test_workers_that_hear_of_it_at_different_steps_are_told_apart(config: Config) -> None:
    born = digest_of(config.root)
    plain = batches(config, born, range(NUM_STEPS))
    gone = plain[0][0]
    take_down(config.root, gone)
    halves, met = (range(3), range(3, 6)), [list[str]() for _ in range(NUM_STEPS)]
    for positions, first in zip(halves, (5, 9), strict=True):
        stream = make_stream(config, (born,))
        for step in range(first):
            met[step] += plain[step][positions.start : positions.stop]
        with prefetched(stream, range(first, NUM_STEPS), positions) as ready:
            for step, batch in zip(range(first, NUM_STEPS), ready, strict=True):
                met[step] += batch.uids
    for uid in {uid for uids in plain for uid in uids}:
        assert appearances(config.run, uid).num_times == sum(uids.count(uid) for uids in met)


def test_takedowns_alone_leave_a_run_the_same(config: Config) -> None:
    born = digest_of(config.root)
    uid = batches(config, born, range(1))[0][0]
    take_down(config.root, uid)
    again = RunRecord(config=config, corpus_digest=digest_of(config.root), encoder_digest="0")
    assert holds(again)
    assert continuing(again).corpus_digest == born


def test_nothing_left_is_an_error(root: str, tiny_config: Callable[..., Config]) -> None:
    born = digest_of(root)
    stream = make_stream(tiny_config(root=root, batch_size=2, held_out=0.0))
    every = {uid for step in range(14) for uid in stream.batch(step, range(2)).uids}
    take_down(root, *every)
    with pytest.raises(InputError, match="nothing is left to train on"):
        SampleStream(StreamSettings(root, born=(born,))).batch(0, range(1))


def test_a_reader_that_finds_other_bytes_than_it_knows_of_looks_for_a_takedown(root: str) -> None:
    settings = StreamSettings(root, image_size=16, batch_size=4)
    born = digest_of(root)
    stream = SampleStream(settings)
    gone = {stream.batch(step, range(4)).uids[0] for step in range(2)}
    stream = SampleStream(settings)  # has read the tables, and no picture
    take_down(root, *gone)
    after = SampleStream(replace(settings, born=(born,)))
    for step in range(12):
        batch, same = stream.batch(step, range(4)), after.batch(step, range(4))
        assert gone.isdisjoint(batch.uids)
        assert batch.uids == same.uids
        assert torch.equal(batch.pixels, same.pixels)


def test_a_corpus_that_loses_samples_while_it_goes_to_the_device_is_read_without_them(
    root: str,
) -> None:
    settings = StreamSettings(root, image_size=16, batch_size=4, on_device=True)
    gone = SampleStream(settings).batch(0, range(4)).uids[0]
    stream = SampleStream(settings)  # has read the tables, and no picture
    take_down(root, gone)
    with prefetched(stream, range(12), range(4)) as ready:
        met = [batch.uids for batch in ready]
    assert len(met) == 12
    assert all(gone not in uids for uids in met)
