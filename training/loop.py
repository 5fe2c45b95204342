"""What one worker does: DDPM's Algorithm 1 from the last checkpoint to the last step.

Reads   the corpus's shards, RUN/run.json, RUN/checkpoints
Writes  RUN/checkpoints, RUN/metrics.jsonl, RUN/events.jsonl (what isn't sharded: the first worker)

Runs on its own on one device, or as one of several under torch.distributed, which whoever
started them has initialised. Every random number of a step is drawn for the whole batch from
(seed, step) and each worker takes its part, so their count changes the maths by rounding only;
where dropout is on, it also changes which activations are dropped.
"""

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from infra.errors import ConflictError, InputError, ShortfallError
from infra.stamp import differences
from training import checkpoint
from training.checkpoint import CheckpointManifest
from training.config import Config
from training.data import make_stream
from training.diffusion import Network, make_objective
from training.draws import draw, seed_of
from training.initial import load_initial
from training.log import Log, OnLog, add_event
from training.memory import told_by_its_setting, told_of_a_look, told_of_the_state
from training.model import TrainedModel, model_of
from training.network import compiled, flops_per_image, make_network
from training.notices import Notice, Notices, no_notices
from training.order import Purpose
from training.parallel import Layout, Worker, replicated, shard, synchronised
from training.record import RunRecord
from training.space import Draw, conditioned, make_space
from training.state import State
from training.streaming.ahead import prefetched
from training.streaming.batch import Batch
from training.text import make_captions
from training.watching.watch import Watch
from training.writer import CheckpointWriter

WARMUP_STEPS = 500
"""Where nothing is set, and the run is ten times as long."""


def train(
    record: RunRecord,
    on_log: OnLog | None = None,
    device: torch.device | None = None,
    notices: Notices = no_notices,
) -> None:
    """Train to the record's last step. `on_log` is told every line of the metrics."""
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL talks
    with told_of_the_state(record.config):
        trainer = Trainer(record, Worker.current(device), on_log, notices)
    with trainer.watch:
        with told_of_the_state(record.config):
            trainer.resume()
        trainer.run()


class Trainer:
    """One worker of a run: its share of the samples and of the state."""

    def __init__(
        self,
        record: RunRecord,
        worker: Worker,
        on_log: OnLog | None = None,
        notices: Notices = no_notices,
    ) -> None:
        config = record.config
        self.record, self.config, self.worker, self.notices = record, config, worker, notices
        self._noticed: Notice | None = None
        self.positions = worker.positions(config.batch_size)
        self.passes = worker.passes(config.batch_size, config.max_batch_per_worker)
        self._largest_pass = max(rows.stop - rows.start for rows in self.passes)
        born = (record.corpus_digest, *record.mix_digests)
        self.stream = make_stream(config, born, str(worker.device))
        self.objective = make_objective(config, worker.device)
        self.space = make_space(config, worker.device)
        self.captions = make_captions(config, worker.device)
        if self.stream.manifest.num_samples <= config.text_cache_captions:
            self.captions.remember(self.stream.captions())
        torch.manual_seed(config.seed)  # the initial weights
        self.model = make_network(config, self.captions.width).to(worker.device)
        if config.init_from is not None:
            load_initial(self.model, config)
        layout = Layout.of(config.parallel, worker)
        shard(self.model, layout, worker.device)
        self.network = replicated(compiled(self.model, config, worker.device), layout)
        self.state = State(config, self.model, layout)
        self.writer = CheckpointWriter(record, worker, layout)
        flops = flops_per_image(config, self.captions.width)
        self.watch = Watch(config, worker, self.network, flops.training)
        self.log = Log(self.watch, self.positions.start, on_log)

    # The loop

    def run(self) -> None:
        steps = range(self.state.step, self.config.num_steps)
        with self.log, self.writer, prefetched(self.stream, steps, self.positions) as batches:
            for _ in steps:
                with self.watch.clock.spent("data"):
                    batch = next(batches)
                loss, grad_norm = self.train_step(batch)
                self.log.add(loss, grad_norm, batch.uids)
                self._after_step()
        if self.worker.num_workers > 1:
            dist.barrier()  # the last checkpoint is there for all

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns this worker's share of L_simple and the gradient's norm."""
        config, step = self.config, self.state.step
        # torch's dropout knows no generator but the global one
        torch.manual_seed(seed_of(config, Purpose.DROPOUT, step, self.worker.rank))
        self.state.optimizer.zero_grad(set_to_none=True)
        with told_by_its_setting(config, step, self._largest_pass):
            loss = self._backward(batch)
            grad_norm = self.state.advance(learning_rate(config, step), config.clip_norm)
        return loss, grad_norm

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the loss, averaged over the whole batch, into the parameters."""
        config, device = self.config, self.worker.device
        pixels = batch.pixels.to(device, non_blocking=True)
        draws_for = self._draw_for(Purpose.CONDITION)
        x_0, condition = self.space.targets(pixels, draws_for, self._largest_pass)
        tokens, mask = self.captions.encode(batch.captions, self._largest_pass)
        draws = draw(config, self.state.step, x_0.shape[1:], device).part(self.positions)
        mask = mask & ~draws.drops_caption[:, None]
        loss = torch.zeros((), device=device)
        for rows in self.passes:
            is_last = rows is self.passes[-1]
            with synchronised(self.model, self.network, is_last), self._autocast():
                given = None if condition is None else condition[rows]
                network = self._bound(tokens[rows], mask[rows], given)
                per_sample = self.objective.per_sample_loss(
                    network, x_0[rows], draws.t[rows], draws.eps[rows]
                )
                # Between workers gradients are averaged, whatever each one's share of the batch.
                share = config.batch_size / self.worker.num_workers
                torch.autograd.backward(per_sample.weighted.sum() / share)
            loss += per_sample.simple.detach().sum() / config.batch_size
        return loss

    def _draw_for(self, purpose: Purpose) -> Draw:
        config, positions = self.config, self.positions
        seed = seed_of(config, purpose, self.state.step)
        generator = torch.Generator(self.worker.device).manual_seed(seed)
        return Draw(generator, config.batch_size, slice(positions.start, positions.stop))

    def _bound(self, tokens: Tensor, mask: Tensor, condition: Tensor | None) -> Network:
        denoiser = conditioned(self.network, condition)

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return denoiser(x_t.contiguous(memory_format=torch.channels_last), t, tokens, mask)

        return network

    def _autocast(self) -> torch.autocast:
        device, precision = self.worker.device.type, self.config.precision
        enabled = precision == "bfloat16" or (precision == "auto" and device == "cuda")
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def _after_step(self) -> None:
        """Log, checkpoint and look around, each when it is due."""
        config, step = self.config, self.state.step
        is_last, logs = step == config.num_steps, step % config.log_every == 0
        notice = self._new_notice() if logs or self.worker.num_workers == 1 else None
        saves = is_last or step % config.checkpoint_every == 0 or notice is not None
        if self.watch.is_due(step):
            with told_of_a_look(config, step):
                self.watch.look(self._averaged_model())
        if saves or logs:
            self.log.flush(step, learning_rate(config, step - 1), publish=saves)
        if saves:
            with self.watch.clock.spent("checkpoint"):
                self.save(must=is_last or notice is not None)
        self.writer.look()
        if notice is not None and notice.ends_run and not is_last:
            self._end_at(notice)

    def _averaged_model(self) -> TrainedModel:
        """Asked for by all workers at the same steps."""
        weights = self.state.averaged_weights()
        return model_of(self.config, self.state.step, weights, self.captions, self.space)

    # Notices

    def _new_notice(self) -> Notice | None:
        """Asked by all workers at the same steps."""
        notice = self.notices()
        if notice is None or notice == self._noticed:
            return None
        self._noticed = notice
        if self.worker.rank == 0:
            add_event(self.config.run, "notice", message=f"{notice.name} at {self.state.step}")
        return notice

    def _end_at(self, notice: Notice) -> None:
        self.writer.finish()
        raise ShortfallError(
            f"{self.config.run}: stopped by {notice.name} after step {self.state.step} of "
            f"{self.config.num_steps}, with a checkpoint; the same command goes on from there"
        )

    # Checkpoints

    def save(self, must: bool) -> None:
        """In the background; left out where the one before is still being written, unless it
        must be."""
        if self.writer.is_free(None if must else self.config.checkpoint_patience_s):
            self.writer.start(self.state.step, self.state.parts())
        elif self.worker.rank == 0:
            message = f"of step {self.state.step}: the one before is still being written"
            add_event(self.config.run, "checkpoint left out", message=message)

    def resume(self) -> None:
        """Take up the newest whole checkpoint; say so, and what was wrong with newer ones, which
        are checkpoints no longer: they would count among the `keep_last` that stay."""
        found, damages = checkpoint.load_newest(self.config.run)
        if found is not None:
            self._check_is_of_this_run(found.manifest)
            self.state.load(found)
        workers = self._who_resumes()  # from here on all of them have looked
        if self.worker.rank == 0:
            for step, damage in damages.items():
                add_event(self.config.run, "damaged checkpoint", message=str(damage))
                checkpoint.revoke(self.config.run, step)
            add_event(
                self.config.run,
                "start" if found is None else "resume",
                step=self.state.step,
                num_workers=self.worker.num_workers,
                workers=workers,
            )
        self.log.resume(self.state.step)

    def _check_is_of_this_run(self, manifest: CheckpointManifest) -> None:
        """A checkpoint may have been put there from elsewhere."""
        record = self.record
        other = differences(_settings(manifest), record.config.identity())
        if manifest.corpus_digest != record.corpus_digest:
            other.append(f"corpus {manifest.corpus_digest}, now {record.corpus_digest}")
        if other:
            raise ConflictError(
                f"checkpoint {checkpoint.checkpoint_url(self.config.run, manifest.step)}: of "
                f"another run ({'; '.join(other)}); expected one that this RUN wrote: remove it"
            )

    def _who_resumes(self) -> list[dict[str, object]]:
        """Where the workers are. Machines that each have a RUN of their own would go on from
        different weights."""
        worker, step = self.worker, self.state.step
        own: dict[str, object] = {
            "rank": worker.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if worker.num_workers == 1:
            return [own]
        found = [(own, step)] * worker.num_workers
        dist.all_gather_object(found, (own, step))
        steps = [step for _, step in found]
        if len(set(steps)) > 1:
            raise InputError(
                f"{self.config.run}: the workers find different checkpoints there (of steps "
                f"{', '.join(map(str, steps))}); expected storage that all of them share"
            )
        return [who for who, _ in found]


def _settings(manifest: CheckpointManifest) -> dict[str, Any]:
    """Those that a checkpoint is of; what it doesn't know yet has its default."""
    try:
        return Config(**{"root": "", "run": ""} | manifest.config).identity()
    except ValidationError:  # it has some that are no more
        return manifest.config


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_share` of the steps."""
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = min(WARMUP_STEPS, config.num_steps // 10)
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay_steps = config.decay_share * config.num_steps
    left = min(1.0, (config.num_steps - step) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * warm * left
