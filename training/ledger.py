"""How often, and when, a run has met a sample: computed, for the order of samples is a function.

Reads   RUN/run.json, RUN/checkpoints/*/checkpoint.json, RUN/ledger, and the corpora that the run
        was given: their manifests, parquets and selections; their receipts, where samples were
        taken down since

Imports no torch: `carrara why` answers at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from infra import storage
from infra.records import read_mapping
from training.record import RunRecord, read_record
from training.streaming.catalogue import Catalogue
from training.streaming.plan import Meeting, SamplePlan
from training.streaming.shapes import shapes_for
from training.streaming.takedowns import Followed, followed_takedowns


@dataclass(frozen=True)
class Appearances:
    """Of one sample, in the batches up to the newest checkpoint; mirrored ones count alike."""

    num_steps: int
    num_epochs: float
    num_times: int
    first_step: int | None
    last_step: int | None
    left_out_from: int | None = None
    """The step from which on it was left out, having been taken down; None: it was not."""


def appearances(run: str, uid: str) -> Appearances:
    """Raises ConflictError where a corpus is no longer the one that the run was trained on."""
    return Ledger(read_record(run)).appearances(uid)


class Ledger:
    """What a run was trained on, up to its newest checkpoint."""

    def __init__(self, record: RunRecord) -> None:
        config = record.config
        self._run, self.num_steps = config.run, newest_step(config.run)
        shapes = shapes_for(
            config.image_size, config.data.max_aspect_ratio, config.data.side_multiple
        )
        roots = (config.root, *config.mix)
        selections = (config.selection, *config.mix_selections)
        born = (record.corpus_digest, *record.mix_digests)
        self._catalogues = [
            Catalogue(
                root,
                selection=(selections[number] or None) if number < len(selections) else None,
                held_out=config.held_out,
                shapes=shapes,
                born=born[number],
            )
            for number, root in enumerate(roots)
        ]
        self._plan = SamplePlan(
            self._catalogues,
            config.mix_shares,
            batch_size=config.batch_size,
            seed=config.seed,
            shapes=shapes,
            shuffle_shards=config.shuffle_shards,
            shuffle_samples=config.data.shuffle_samples,
        )

    def appearances(self, uid: str) -> Appearances:
        steps: list[int] = []
        left_out: list[int] = []
        for corpus, catalogue in enumerate(self._catalogues):
            place = catalogue.find(uid)
            if place is not None:
                steps += self._steps(corpus, uid, *place)
                steps += self._steps_as_substitute(corpus, *place)
                left_out += [
                    one.step for one in self._followed if uid in self._gone_by(corpus, one)
                ]
        return Appearances(
            num_steps=self.num_steps,
            num_epochs=self._plan.num_epochs(self.num_steps),
            num_times=len(steps),
            first_step=min(steps, default=None),
            last_step=max(steps, default=None),
            left_out_from=min(left_out, default=None),
        )

    def _steps(self, corpus: int, uid: str, shard: int, row: int) -> Iterator[int]:
        """Those that a sample was drawn for and was not gone."""
        for meeting in self._plan.meetings(corpus, shard, row, self.num_steps):
            if uid not in self._gone_at(corpus, meeting):
                yield meeting.step

    def _steps_as_substitute(self, corpus: int, shard: int, row: int) -> Iterator[int]:
        """Those in which it stood in for a sample that was gone."""
        catalogue = self._catalogues[corpus]
        for uid in sorted(catalogue.gone):
            place = catalogue.find(uid)
            if place is None:
                continue
            for meeting in self._plan.meetings(corpus, *place, self.num_steps):
                gone = self._gone_at(corpus, meeting)
                is_gone = uid in gone
                if is_gone and self._plan.substitute(corpus, *place, gone) == (shard, row):
                    yield meeting.step

    def _gone_at(self, corpus: int, meeting: Meeting) -> frozenset[str]:
        """uids that the worker with this place of the batch left out at that step. Of several
        states that it followed the last one has all that the others had."""
        states = (
            self._gone_by(corpus, one)
            for one in self._followed
            if one.step <= meeting.step and one.start <= meeting.position < one.stop
        )
        return max(states, key=len, default=frozenset())

    def _gone_by(self, corpus: int, followed: Followed) -> frozenset[str]:
        return self._catalogues[corpus].gone_in(followed.digests[corpus])

    @cached_property
    def _followed(self) -> list[Followed]:
        return list(followed_takedowns(self._run))


def newest_step(run: str) -> int:
    """0 where no checkpoint was written to its end."""
    folder = storage.join(run, "checkpoints")
    urls = [storage.join(folder, name, "checkpoint.json") for name in storage.list_names(folder)]
    return max((int(read_mapping(url)["step"]) for url in urls if storage.exists(url)), default=0)
