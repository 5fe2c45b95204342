"""Checkpoints written while training goes on.

Writes  RUN/checkpoints (see checkpoint.py)

A step stands still for a copy of the state to the host's memory and for no more: a thread writes
the copy, and the first worker commits the checkpoint once all workers' files are there. One is
under way at a time; what is due meanwhile is left out, or waited for (`checkpoint_patience_s`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

import torch
import torch.distributed as dist
from torch import Tensor

from infra.errors import CarraraError, StorageError
from training import checkpoint
from training.checkpoint import CheckpointManifest, Tensors
from training.parallel import Layout, Worker, local
from training.record import RunRecord

LAST_WAIT_S = 120.0
"""How long a run that ends in an error waits for the checkpoint that is being written."""


class CheckpointWriter:
    """One in every worker; all of them call `is_free` alike.

    `with writer:` around the training waits at its end for what is being written.
    """

    def __init__(self, record: RunRecord, worker: Worker, layout: Layout) -> None:
        self._record, self._worker, self._layout = record, worker, layout
        self._copy: dict[str, Tensors] = {}
        self._under_way: Future[None] | None = None
        # The threads need messages of their own: the steps' would get mixed up with them.
        self._group: dist.ProcessGroup | None = None
        if layout.num_shards > 1:
            group = dist.new_group(list(range(layout.num_shards)), backend="gloo")
            self._group = group if isinstance(group, dist.ProcessGroup) else None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self._under_way is not None:  # what is being written is good
            wait([self._under_way], LAST_WAIT_S)

    def is_free(self, patience_s: float | None) -> bool:
        """Whether all workers have written the one before; waits so long for it, None: as long as
        it takes."""
        if self._under_way is not None:
            wait([self._under_way], patience_s)
        self.look()
        is_busy = self._under_way is not None
        if self._layout.num_shards > 1:
            busy = torch.tensor(float(is_busy), device=self._worker.device)
            dist.all_reduce(busy)
            is_busy = bool(busy.item())
        return not is_busy

    def start(self, step: int, parts: dict[str, Tensors]) -> None:
        """Copy the state, write the copy in the background; it may change again on return."""
        assert self._under_way is None
        if self._layout.is_writer:
            self._stage(parts)
            self._under_way = Future()
            job = (self._under_way, lambda: self._write(step))
            threading.Thread(target=_carry_out, args=job, name="checkpoint", daemon=True).start()

    def look(self) -> None:
        """Raises what kept a checkpoint from being written since the last look."""
        if self._under_way is not None and self._under_way.done():
            done, self._under_way = self._under_way, None
            done.result()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._under_way is not None:
            wait([self._under_way])
            self.look()

    # The copy

    def _stage(self, parts: dict[str, Tensors]) -> None:
        """Into the same memory each time, locked on a GPU's host so that the copy runs at the
        bus's speed."""
        is_gpu = self._worker.device.type == "cuda"
        self._copy = {part: self._staged(part, own) for part, own in self._own(parts).items()}
        if is_gpu:
            torch.cuda.current_stream(self._worker.device).synchronize()

    def _own(self, parts: dict[str, Tensors]) -> dict[str, Tensors]:
        """What this worker writes: its rows, and what has none in the first worker alone."""
        return {
            part: {
                name: local(tensor).detach()
                for name, tensor in tensors.items()
                if self._layout.shard == 0 or (tensor.ndim and len(local(tensor)))
            }
            for part, tensors in parts.items()
        }

    def _staged(self, part: str, tensors: Tensors) -> Tensors:
        before = self._copy.get(part, {})
        copies = {
            name: before[name] if name in before else _host_memory(tensor)
            for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            copies[name].copy_(tensor, non_blocking=True)
        return copies

    # The thread

    def _write(self, step: int) -> None:
        run, layout = self._record.config.run, self._layout
        failure = None
        digests: dict[str, str] = {}
        try:
            if self._worker.rank == 0:
                checkpoint.revoke(run, step)
            digests = checkpoint.write(run, step, self._copy, layout.shard, layout.num_shards)
        except CarraraError as error:  # all have to hear of it
            failure = str(error)
        for theirs, message in self._told_by_all((digests, failure)):
            digests |= theirs
            failure = failure or message
        if failure is not None:
            raise StorageError(failure)
        if self._worker.rank == 0:
            self._commit(step, digests)

    def _told_by_all(
        self, mine: tuple[dict[str, str], str | None]
    ) -> list[tuple[dict[str, str], str | None]]:
        if self._group is None:
            return [mine]
        told = [mine] * self._layout.num_shards
        dist.all_gather_object(told, mine, group=self._group)
        return told

    def _commit(self, step: int, digests: dict[str, str]) -> None:
        config = self._record.config
        manifest = CheckpointManifest(
            step=step,
            config=config.identity(),
            corpus_digest=self._record.corpus_digest,
            sha256=dict(sorted(digests.items())),
        )
        checkpoint.commit(config.run, manifest)
        checkpoint.prune(config.run, config.keep_last, config.keep_every)


def _carry_out(promise: "Future[None]", job: Callable[[], None]) -> None:
    try:
        job()
        promise.set_result(None)
    except BaseException as error:  # carried to the loop, which raises it
        promise.set_exception(error)


def _host_memory(tensor: Tensor) -> Tensor:
    return torch.empty(
        tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda"
    )
