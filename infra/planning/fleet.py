"""The machines and the store that a plan is made for, as a TOML file describes them.

[machines.cpu]
count = 40
cores = 16
memory_gb = 32
network_gbps = 12.5
dollars_per_hour = 0.81
losses_per_hour = 0.02        # spot: each machine's chance to be taken away

[machines.gpu]
count = 2
...
gpus = 8
gpu = "H100"

[stages]                      # who does what; else GPUs embed and train, the others the rest
embed = "gpu"
"""

import os

from pydantic import Field

from infra.config import Settings
from infra.errors import ConfigError
from infra.planning.gpus import PEAK_TFLOPS
from infra.records import read_record

ON_GPUS = ("embed", "train")


class Machine(Settings):
    """A kind of machine, and how many of it."""

    count: int = Field(ge=1)
    cores: int = Field(ge=1)
    """Those that the cloud counts (vCPUs)."""
    memory_gb: float = Field(gt=0)
    network_gbps: float = Field(gt=0)
    """To the store and to the web, gigabits a second; of p-like machines the aggregate."""
    gpus: int = Field(default=0, ge=0)
    gpu: str | None = None
    """One of infra/planning/gpus.py, such as H100; another with its `peak_tflops`."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Of one GPU, dense, in bfloat16."""
    gpu_link_gbps: float = Field(default=2400.0, gt=0)
    """Between the GPUs of one machine, gigabits a second and GPU (NVLink 3: 2,400 each way)."""
    dollars_per_hour: float = Field(default=0.0, ge=0)
    losses_per_hour: float = Field(default=0.0, ge=0)
    """The chance that one machine is lost within an hour."""
    replacement_s: float = Field(default=300.0, ge=0)
    """From a machine's loss until another one does its work."""

    @property
    def peak_flops(self) -> float:
        """Of one GPU."""
        if self.peak_tflops is None and self.gpu not in PEAK_TFLOPS:
            raise ConfigError(
                f"gpu {self.gpu!r}: no figure for it is known; expected one of "
                f"{', '.join(PEAK_TFLOPS)}, or its peak_tflops as well"
            )
        return 1e12 * (self.peak_tflops or PEAK_TFLOPS[str(self.gpu)])


class Store(Settings):
    """The object store. The prices are S3's in us-east-1, standard class."""

    dollars_per_gb_month: float = Field(default=0.023, ge=0)
    dollars_per_1000_writes: float = Field(default=0.005, ge=0)
    """PUT and LIST."""
    dollars_per_1000_reads: float = Field(default=0.0004, ge=0)
    gbps: float | None = Field(default=None, gt=0)
    """What it gives to all machines together; none: as much as they can take."""


class Fleet(Settings):
    """Everything that a cluster description says."""

    machines: dict[str, Machine] = Field(min_length=1)
    stages: dict[str, str] = Field(default_factory=dict)
    store: Store = Store()

    def for_stage(self, stage: str) -> tuple[str, Machine]:
        """Whose work a stage is; raises ConfigError where the description names no such machine."""
        name = self.stages.get(stage) or self._fitting(stage)
        if name not in self.machines:
            raise ConfigError(
                f"stages.{stage} is {name!r}: expected one of {', '.join(self.machines)}"
            )
        return name, self.machines[name]

    def _fitting(self, stage: str) -> str:
        wants_gpus = stage in ON_GPUS
        fitting = [name for name, one in self.machines.items() if (one.gpus > 0) == wants_gpus]
        return next(iter(fitting or self.machines))


def read_fleet(url: str) -> Fleet:
    """Raises DamagedError for what is no cluster description, ConfigError where there is none."""
    try:
        return read_record(url, Fleet)
    except FileNotFoundError:
        raise ConfigError(
            f"--cluster {url}: no such file; expected a TOML file with a table for each kind of "
            "machine, such as infra/deploy/ray/aws.plan.toml"
        ) from None


def this_machine() -> Fleet:
    """Where no cluster is described: the machine that asks."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = Machine(count=1, cores=os.cpu_count() or 1, memory_gb=memory / 1e9, network_gbps=1.0)
    return Fleet(machines={"here": here})
