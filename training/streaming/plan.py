"""Which samples make up a step: a pure function of the corpora, the selection, the seed and the
step, whatever the number of workers and whatever came before.

    step -> shape      the shapes take turns by their share of the samples; a step has one shape
    place in the batch -> lane -> corpus      corpora take turns on every lane by their shares
    corpus, shape, lane -> draw of an epoch -> shard, row

Every (corpus, shape) is an endless stream of its own, epoch after epoch: what is left of an epoch
that fills no whole batch is carried into the next one. Imports no torch.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np

from infra.errors import ConfigError, InputError
from training.order import ONE, Block, SampleOrder, Shares, num_lanes_for
from training.streaming.catalogue import Catalogue
from training.streaming.shapes import Shape, merged


@dataclass(frozen=True)
class Cell:
    """Samples of one corpus and one shape."""

    corpus: int
    shape: int


Place = tuple[int, int, int]
"""Corpus, shard, row."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of a block, in the order in which they are met."""

    cell: Cell
    block: Block
    following: Block
    """Of its lane."""
    items: range
    """Of the lane, those that these are."""
    places: list[Place]


class Drawn(NamedTuple):
    """Which sample of which block a place in the batch has."""

    rows: Rows
    number: int

    @property
    def place(self) -> Place:
        return self.rows.places[self.number]


@dataclass(frozen=True)
class Meeting:
    """Of a run with a sample."""

    step: int
    position: int


class SamplePlan:
    """The samples of every step."""

    def __init__(
        self,
        catalogues: Sequence[Catalogue],
        shares: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        shapes: tuple[Shape, ...],
        shuffle_shards: int,
        shuffle_samples: int,
    ) -> None:
        """`shares`: of every corpus but the first, which has the rest; none: by their samples."""
        self.catalogues, self.shapes, self.batch_size = catalogues, shapes, batch_size
        self.num_lanes = num_lanes_for(batch_size)
        self.per_lane = batch_size // self.num_lanes
        totals = [int(catalogue.tallies.sum()) for catalogue in catalogues]
        for catalogue, total in zip(catalogues, totals, strict=True):
            _check_not_empty(catalogue, total)
        sizes = sum(catalogue.tallies.sum(axis=1) for catalogue in catalogues) // ONE
        goes_to = merged([int(size) for size in np.asarray(sizes)], shapes, batch_size)
        self._members = {
            shape: frozenset(n for n, to in enumerate(goes_to) if to == shape)
            for shape in sorted(set(goes_to))
        }
        self._orders: dict[Cell, SampleOrder] = {}
        for shape, members in self._members.items():
            for corpus, catalogue in enumerate(catalogues):
                self._orders[Cell(corpus, shape)] = SampleOrder(
                    catalogue.tallies[sorted(members)].sum(axis=0),
                    seed,
                    num_lanes=self.num_lanes,
                    shuffle_shards=shuffle_shards,
                    shuffle_samples=shuffle_samples,
                    stream=(corpus, shape),
                )
        self.num_samples = sum(order.num_samples for order in self._orders.values())
        """Draws an epoch, over all corpora."""
        self._shape_numbers = list(self._members)
        rates = _rates(totals, shares, catalogues, self._members)
        self._corpora = [Shares(tuple(column)) for column in rates]
        self._steps = Shares(tuple(sum(column) for column in rates))
        self._rows: OrderedDict[tuple[Cell, Block], Rows] = OrderedDict()
        self._current: dict[tuple[int, int, int], Rows] = {}
        """By corpus, shape and lane, the block that was met last: most steps stay in it."""

    def shape_of(self, step: int) -> Shape:
        return self.shapes[self._turn(step)[0]]

    def draws(self, step: int, positions: range) -> Iterator[Drawn]:
        shape, turn = self._turn(step)
        corpora = self._corpora[self._shape_numbers.index(shape)]
        for position in positions:
            lane, place = divmod(position, self.per_lane)
            corpus, item = corpora.stream_of(turn * self.per_lane + place, lane / self.num_lanes)
            rows = self._current.get((corpus, shape, lane))
            if rows is None or item not in rows.items:
                cell = Cell(corpus, shape)
                block, _ = self._orders[cell].block_of(lane, item)
                rows = self.rows(cell, block)
                self._current[corpus, shape, lane] = rows
            yield Drawn(rows, item - rows.items.start)

    def rows(self, cell: Cell, block: Block) -> Rows:
        """In place of a sample that was taken down since the run began stands the next one of its
        shard that was not; all others stay where they are."""
        key = (cell, block)
        if key not in self._rows:
            self._rows[key] = self._find_rows(cell, block)
            while len(self._rows) > 4 * self.num_lanes * len(self._orders):
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def forget(self) -> None:
        """The catalogues have followed a takedown."""
        self._rows.clear()
        self._current.clear()

    # From a sample to the steps that met it

    def meetings(self, corpus: int, shard: int, row: int, num_steps: int) -> Iterator[Meeting]:
        """Steps that a sample was drawn for, whether or not it was gone by then, epoch by epoch."""
        table = self.catalogues[corpus].table(shard)
        cell = self._cell_of(corpus, shard, row)
        order, interval = self._orders[cell], table.interval_of(self._members[cell.shape], row)
        start, end = (order.shard_start(shard) + x for x in interval)
        last = max(self._num_items(cell, lane, num_steps) for lane in range(self.num_lanes))
        epoch = 0
        while order.lane_start(0, epoch) < last:
            first = order.first_draw(epoch, shard)
            for draw in order.draws_between(epoch, start, end):
                lane, item = order.find(epoch, shard, draw - first)
                meeting = self._meeting(cell, lane, item)
                if meeting.step < num_steps:
                    yield meeting
            epoch += 1

    def num_epochs(self, num_steps: int) -> float:
        return num_steps * self.batch_size / self.num_samples

    def _num_items(self, cell: Cell, lane: int, num_steps: int) -> int:
        """Of a cell's samples on a lane, how many the first steps met."""
        number = self._shape_numbers.index(cell.shape)
        turns = self._steps.num_of(number, num_steps)
        return self._corpora[number].num_of(
            cell.corpus, turns * self.per_lane, lane / self.num_lanes
        )

    def _meeting(self, cell: Cell, lane: int, item: int) -> Meeting:
        number = self._shape_numbers.index(cell.shape)
        place = self._corpora[number].place_of(cell.corpus, item, lane / self.num_lanes)
        turn, offset = divmod(place, self.per_lane)
        return Meeting(self._steps.place_of(number, turn), lane * self.per_lane + offset)

    def _turn(self, step: int) -> tuple[int, int]:
        """The shape of a step, and how many steps had it before."""
        number, turn = self._steps.stream_of(step)
        return self._shape_numbers[number], turn

    def _find_rows(self, cell: Cell, block: Block) -> Rows:
        order, members = self._orders[cell], self._members[cell.shape]
        catalogue = self.catalogues[cell.corpus]
        draws = order.draws(block)
        positions = order.positions(block.epoch, draws)
        shards, rows = draws.shards.copy(), np.empty_like(positions)
        for shard in np.unique(draws.shards).tolist():
            mine = np.flatnonzero(draws.shards == shard)
            table = catalogue.table(shard)
            rows[mine] = table.rows_at(members, positions[mine])
            for place in mine[table.is_gone[rows[mine]]]:
                shards[place], rows[place] = self._substitute(
                    cell, shard, int(rows[place]), catalogue.gone
                )
        places = list(zip(repeat(cell.corpus), shards.tolist(), rows.tolist(), strict=False))
        return Rows(cell, block, order.next_block(block), order.items_of(block), places)

    def substitute(
        self, corpus: int, shard: int, row: int, gone: frozenset[str]
    ) -> tuple[int, int]:
        """The shard and row of who stands in for a sample that is among those gone."""
        return self._substitute(self._cell_of(corpus, shard, row), shard, row, gone)

    def _substitute(
        self, cell: Cell, shard: int, row: int, gone: frozenset[str]
    ) -> tuple[int, int]:
        """The next sample of its shard, going round, or the first of the next shard with any."""
        catalogue, members = self.catalogues[cell.corpus], self._members[cell.shape]
        num = len(catalogue.manifest.shards)
        for step in range(num):
            other = (shard + step) % num
            start = row if step == 0 else 0
            found = catalogue.table(other).living_after(members, start, gone)
            if found is not None:
                return other, found
        raise InputError(
            f"{catalogue.root}: all samples that the run was given have been taken down; nothing "
            "is left to train on"
        )

    def _cell_of(self, corpus: int, shard: int, row: int) -> Cell:
        own = self.catalogues[corpus].table(shard).shapes[row]
        return Cell(corpus, next(shape for shape, all_ in self._members.items() if own in all_))


def _rates(
    totals: list[int],
    shares: Sequence[float],
    catalogues: Sequence[Catalogue],
    members: dict[int, frozenset[int]],
) -> list[list[int]]:
    """For each shape the corpora's parts of the stream, as whole numbers."""
    if shares and (len(shares) != len(totals) - 1 or sum(shares) >= 1 or min(shares) <= 0):
        raise ConfigError(
            f"mix_shares {' '.join(map(str, shares))}: expected one above 0 for each of the "
            f"{len(totals) - 1} corpora of mix, together less than 1; ROOT has the rest"
        )
    parts = [1 - sum(shares), *shares] if shares else [total / sum(totals) for total in totals]
    scale = [int(part * 2**40) for part in parts]
    return [
        [
            scale[corpus] * int(catalogue.tallies[sorted(inside)].sum()) // totals[corpus]
            for corpus, catalogue in enumerate(catalogues)
        ]
        for inside in members.values()
    ]


def _check_not_empty(catalogue: Catalogue, total: int) -> None:
    if total == 0:
        name = catalogue.selection
        chosen = f" that selection {name!r} keeps" if name else ""
        raise InputError(f"{catalogue.root}: no samples{chosen}; training needs at least one")
