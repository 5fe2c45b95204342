"""How the state of a run lies over its workers: whole in each (ddp), in shards (fsdp), or in shards
within groups of them (hsdp).

A sharded tensor's rows are dealt to the shards in order, each ceil(rows / shards) of them, as
torch's FSDP2 does it: the shards' rows one after another are the tensor.
"""

import contextlib
import math
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from infra.errors import ConfigError
from training.config import ParallelConfig


@dataclass(frozen=True)
class Worker:
    """Which of the workers this process is, and on what it computes."""

    rank: int
    num_workers: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device | None = None) -> "Worker":
        """`device` None: a GPU where one is."""
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    def positions(self, batch_size: int) -> range:
        """This worker's part of the global batch; parts differ by one at most."""
        if batch_size < self.num_workers:
            raise ConfigError(
                f"batch_size is {batch_size}: expected at least one picture for each of the "
                f"{self.num_workers} workers; raise it, or lower workers.num_workers"
            )
        first = self.rank * batch_size // self.num_workers
        return range(first, (self.rank + 1) * batch_size // self.num_workers)

    def passes(self, batch_size: int, max_batch_per_worker: int) -> list[slice]:
        """This worker's part, cut for one forward pass after the other.

        Their number is the same in all workers, for sharded ones meet in every pass.
        """
        largest = math.ceil(batch_size / self.num_workers)
        num, size = math.ceil(largest / max_batch_per_worker), len(self.positions(batch_size))
        if batch_size // self.num_workers < num:
            raise ConfigError(
                f"max_batch_per_worker is {max_batch_per_worker}: the {self.num_workers} workers' "
                f"shares of batch_size = {batch_size} are uneven; expected at least 2, or a "
                "batch_size that is a multiple of the workers"
            )
        return [slice(i * size // num, (i + 1) * size // num) for i in range(num)]


@dataclass(frozen=True)
class Layout:
    """Of the state over the workers, as one of them sees it."""

    num_replicas: int
    num_shards: int
    replica: int
    shard: int

    @classmethod
    def of(cls, config: ParallelConfig, worker: Worker) -> "Layout":
        match config.mode:
            case "ddp":
                num_shards = 1
            case "fsdp":
                num_shards = worker.num_workers
            case "hsdp":
                # An elastic run may be left with a number of workers that doesn't divide.
                num_shards = math.gcd(worker.num_workers, config.shard_workers)
        replica, shard = divmod(worker.rank, num_shards)
        return cls(worker.num_workers // num_shards, num_shards, replica, shard)

    @property
    def is_writer(self) -> bool:
        """Whether this worker writes its shard of the state: one replica does."""
        return self.replica == 0

    def rows(self, tensor: Tensor) -> Tensor:
        """This worker's shard of a whole tensor."""
        if self.num_shards == 1 or tensor.ndim == 0:
            return tensor
        num_rows = len(tensor)
        size = math.ceil(num_rows / self.num_shards)
        first = min(self.shard * size, num_rows)
        return tensor[first : min(first + size, num_rows)]


WHOLE = Layout(num_replicas=1, num_shards=1, replica=0, shard=0)
"""Of a run of one worker."""


def shard(network: nn.Module, layout: Layout, device: torch.device) -> None:
    """Leave this worker its shard of the weights, in place and under their names.

    The weights of one block at a time are gathered while it computes: blocks are what lies in the
    network's nn.ModuleLists.
    """
    if layout.num_shards == 1:
        return
    sides = {"replica": layout.num_replicas, "shard": layout.num_shards}
    if layout.num_replicas == 1:
        del sides["replica"]
    mesh = init_device_mesh(device.type, tuple(sides.values()), mesh_dim_names=tuple(sides))
    network.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    # Blocks of ours return views and nothing writes to them in place, which is what it warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicated(network: nn.Module, layout: Layout) -> nn.Module:
    """The network as a worker calls it, where every worker has all of it."""
    if layout.num_shards > 1 or layout.num_replicas == 1:
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [
        module
        for modules in network.modules()
        if isinstance(modules, nn.ModuleList)
        for module in modules
        if not isinstance(module, nn.ModuleList)
    ]


def synchronised(
    weights: nn.Module, network: nn.Module, last: bool
) -> contextlib.AbstractContextManager[None]:
    """Gradients travel between workers once a step, with the last pass; `weights` is the module
    that `shard` was given, `network` what `replicated` gave."""
    if isinstance(weights, FSDPModule):
        weights.set_requires_gradient_sync(last)
    elif isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return contextlib.nullcontext()


def local(tensor: Tensor) -> Tensor:
    """What of it lies in this worker."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, in every worker; all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
