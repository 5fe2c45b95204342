"""A line of physics: how fast a run is, how near to what its devices can do, what it costs, and
what bounds it."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.watching.clock import Lap, Wait

BOUND_PERCENT = 10.0
"""A wait bounds the run where it costs more of the time than this. Data and gradients are fetched
while others are computed on, so any wait that lasts says that they are the slower of the two."""

WAITS: tuple[Wait, ...] = ("data", "communication", "checkpoint", "logging")


@dataclass(frozen=True)
class Physics:
    """What the figures of a line are worked out from, the same for the whole run."""

    batch_size: int
    """Over all workers."""
    num_workers: int
    device: torch.device
    flops_per_image: float
    """Of a training step, forward and backward."""
    peak_flops: float | None
    """Of one worker's device, at its best; None where that is not known."""
    worker_hour_dollars: float

    def of(self, num_steps: int, lap: Lap) -> dict[str, Any]:
        """Figures of the steps of a lap; what can't be told is None."""
        images_per_s = self.batch_size * num_steps / lap.seconds
        dollars = None
        if self.worker_hour_dollars:
            dollars_per_s = self.worker_hour_dollars * self.num_workers / 3600
            dollars = round(1e6 * dollars_per_s / images_per_s, 4)
        return {
            "images_per_s": round(images_per_s, 1),
            "mfu_percent": self.mfu_percent(images_per_s),
            "stall_percent": lap.percent("data"),
            "communication_percent": lap.percent("communication"),
            "checkpoint_percent": lap.percent("checkpoint"),
            "logging_percent": lap.percent("logging"),
            "memory_gb": round(memory_bytes(self.device) / 1e9, 3),
            "dollars_per_million_images": dollars,
            "bound_by": bound_by(lap),
        }

    def mfu_percent(self, images_per_s: float) -> float | None:
        """None where no peak is known, or where it can't be one: nothing computes more."""
        if self.peak_flops is None:
            return None
        percent = 100 * images_per_s * self.flops_per_image / (self.num_workers * self.peak_flops)
        return round(percent, 2) if percent <= 100 else None


def bound_by(lap: Lap) -> str:
    """The longest of the waits if it is worth naming, else the computing itself."""
    percents = {wait: lap.percent(wait) or 0.0 for wait in WAITS}
    longest = max(WAITS, key=lambda wait: percents[wait])
    return longest if percents[longest] > BOUND_PERCENT else "compute"


def memory_bytes(device: torch.device) -> int:
    """At most, so far, of the GPU; on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is inherited from the parent on Linux
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
