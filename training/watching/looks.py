"""A look at a run's averaged weights: the loss on held-out pictures, and a grid of samples.

Writes  RUN/held_out.jsonl: step, loss, loss_by_t (ten equal parts of 0..T-1) on held-out pictures,
        seen_loss and seen_loss_by_t on pictures that are trained on; RUN/samples/
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from infra import storage
from training.config import Config
from training.lines import publish_lines, read_lines
from training.log import add_event
from training.model import TrainedModel
from training.watching.examples import read_examples
from training.watching.grids import Grid, make_rows, publish_grid
from training.watching.held_out_loss import loss_by_timestep
from training.watching.nearest import Finder, open_finder


def read_held_out(run: str) -> list[dict[str, Any]]:
    """Every look at the loss on held-out pictures, oldest first."""
    return read_lines(storage.join(run, "held_out.jsonl"))


@dataclass(frozen=True)
class Look:
    figures: dict[str, Any]
    """For the next line of metrics."""
    by_t: dict[str, float]
    """The held-out loss of every part of 0..T-1, to plot."""
    grid: Grid | None


class Looks:
    """The samples to look at are read at the first look, and kept."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device = config, device
        limit = config.watch.held_out_pictures
        self._held_out = read_examples(config, True, limit)
        self._seen = read_examples(config, False, limit)
        self._finder: Finder | str | None = None
        if not self._held_out and config.watch.held_out_every:
            add_event(
                config.run,
                "nothing held out",
                message=f"of {config.root} no sample is among the held_out = {config.held_out:g} "
                "that is kept from training; raise it for a held-out loss",
            )

    def at(self, model: TrainedModel) -> "Look":
        """What is due at the model's step."""
        watch, step = self._config.watch, model.step
        figures: dict[str, Any] = {}
        by_t: dict[str, float] = {}
        if self._held_out and watch.held_out_every and step % watch.held_out_every == 0:
            line = self._losses(model)
            figures = {f"held_out_{name}": line[name] for name in ("step", "loss")}
            figures["seen_loss"] = line["seen_loss"]
            by_t = {f"held_out_loss_t{i}": loss for i, loss in enumerate(line["loss_by_t"])}
        grid = None
        if watch.grid_every and step % watch.grid_every == 0:
            rows = make_rows(self._config, self._seen, self._held_out)
            if rows:
                grid = publish_grid(model, rows, self._opened_finder())
                figures |= {"grid_step": step, "grid_copies": grid.num_copies}
        return Look(figures, by_t, grid)

    def _losses(self, model: TrainedModel) -> dict[str, Any]:
        started, num = time.perf_counter(), self._config.watch.held_out_pictures
        held_out = loss_by_timestep(model, self._held_out, num)
        seen = loss_by_timestep(model, self._seen, num)
        line = {
            "step": model.step,
            **asdict(held_out),
            **{f"seen_{name}": value for name, value in asdict(seen).items()},
            "num_pictures": len(self._held_out),
            "seconds": round(time.perf_counter() - started, 3),
        }
        earlier = [one for one in read_held_out(self._config.run) if one["step"] < model.step]
        publish_lines(storage.join(self._config.run, "held_out.jsonl"), [*earlier, line])
        return line

    def _opened_finder(self) -> "Finder | str":
        if self._finder is None:
            root = self._config.watch.nearest_in or self._config.root
            self._finder = open_finder(root, self._device)
            if isinstance(self._finder, str):
                add_event(self._config.run, "no nearest pictures", message=self._finder)
        return self._finder
