"""What is looked at of a run besides its loss: its physics, held-out pictures, samples.

Writes  RUN/held_out.jsonl, RUN/samples/step-*.png and .json, and to the sinks asked for; the first
        worker alone
"""

from collections.abc import Callable
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from training.config import Config
from training.watching.clock import Clock, CommunicationTimer
from training.watching.peak import peak_flops
from training.watching.physics import Physics
from training.watching.sinks import Sink, numbers, open_sinks

if TYPE_CHECKING:
    from training.model import TrainedModel
    from training.parallel import Worker
    from training.watching.looks import Looks


class Watch:
    """`with watch:` around the training closes the sinks at its end."""

    def __init__(
        self, config: Config, worker: "Worker", network: nn.Module, flops_per_image: float
    ) -> None:
        """`network`: as it is spread over the workers; FLOPs of a training step."""
        self.config, self.num_workers = config, worker.num_workers
        self.is_first = worker.rank == 0
        self.clock = Clock(worker.device)
        self._device = worker.device
        self._communication = CommunicationTimer(network, worker.num_workers)
        self._flops_per_image = flops_per_image
        self._physics: Physics | None = None
        self._sinks: dict[str, Sink] = {}
        self._looks: Looks | None = None
        self._latest: dict[str, Any] = {}
        self._missed_mfu = False
        on_gpu = worker.device.type == "cuda"
        self._is_half = config.precision == "bfloat16" or (config.precision == "auto" and on_gpu)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._sinks):
            self._tell(name, methodcaller("close"))

    def begin(self, step: int) -> None:
        """The training starts, or goes on after this step."""
        config = self.config
        if self.is_first:
            self._sinks = open_sinks(config, step)
            self._physics = Physics(
                batch_size=config.batch_size,
                num_workers=self.num_workers,
                device=self._device,
                flops_per_image=self._flops_per_image,
                peak_flops=self._peak_flops(),
                worker_hour_dollars=config.watch.worker_hour_dollars,
            )
        self.clock.restart()

    def figures(self, num_steps: int) -> dict[str, Any]:
        """Of the steps since the last call; none but the first worker's are of use."""
        if (seconds := self._communication.seconds_a_step()) is not None:
            self.clock.add("communication", seconds * num_steps)
        lap = self.clock.lap()
        if self._physics is None:
            return {}
        latest, self._latest = self._latest, {}
        figures = self._physics.of(num_steps, lap)
        if figures["mfu_percent"] is None and not self._missed_mfu:
            self._missed_mfu = True
            self._tell_why_no_mfu(self._physics.peak_flops)
        return figures | latest

    def on_line(self, line: dict[str, Any]) -> None:
        values = numbers(line)
        for name in list(self._sinks):
            self._tell(name, methodcaller("log", line["step"], values))

    def is_due(self, step: int) -> bool:
        """Whether `look` has something to do after this step; the same for all workers."""
        watch = self.config.watch
        return any(
            every and step % every == 0 for every in (watch.held_out_every, watch.grid_every)
        )

    def look(self, model: "TrainedModel") -> None:
        """At the averaged weights of the step that the model is of."""
        if self.is_first:
            with self.clock.spent("logging"):
                self._look(model)

    def _peak_flops(self) -> float | None:
        if self.config.watch.peak_tflops is not None:
            return self.config.watch.peak_tflops * 1e12
        known = peak_flops(self._device, torch.bfloat16 if self._is_half else torch.float32)
        return None if known is None else known[0]

    def _tell_why_no_mfu(self, peak: float | None) -> None:
        from training.log import add_event

        why = (
            "no peak is known of this device"
            if peak is None
            else f"more is computed than the {peak / 1e12:g} TFLOP/s that are said to be its peak"
        )
        message = f"{why}; --watch.peak-tflops sets what a worker's device computes at its best"
        add_event(self.config.run, "no MFU", message=message)

    def _tell(self, name: str, call: Callable[[Sink], None]) -> None:
        """A service that fails is written to no more; the training goes on."""
        from training.log import add_event

        sink = self._sinks[name]
        try:
            call(sink)
        except sink.errors as error:
            del self._sinks[name]
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = f"{name} is no longer written to: {reason}"
            add_event(self.config.run, "sink failed", message=message)

    def _look(self, model: "TrainedModel") -> None:
        from training.watching.looks import Looks

        if self._looks is None:
            self._looks = Looks(self.config, self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
            look = self._looks.at(model)
        self._latest |= look.figures
        for name in list(self._sinks):
            self._tell(name, methodcaller("log", model.step, numbers(look.figures) | look.by_t))
            if look.grid is not None:
                self._tell(name, methodcaller("picture", model.step, "samples", look.grid.png))
