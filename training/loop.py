"""What one worker does: DDPM's Algorithm 1 from the last checkpoint to the last step.

Reads   the corpus's shards, RUN/run.json, RUN/checkpoints
Writes  RUN/checkpoints, RUN/metrics.jsonl, RUN/events.jsonl (the first worker alone)

Runs on its own on one device, or as one of several under torch.distributed, which whoever
started them has initialised. Every random number of a step is drawn for the whole batch from
(seed, step) and each worker takes its part, so their count changes the maths by rounding only;
where dropout is on, it also changes which activations are dropped.
"""

import contextlib
import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infra.errors import ConfigError, InputError
from training import checkpoint
from training.config import Config
from training.data import Batch, SampleStream, prefetched
from training.diffusion import Network, make_objective
from training.ema import EMA
from training.log import Log, OnLog, add_event
from training.network import compiled, flops_per_image, make_network
from training.order import Purpose, random
from training.record import RunRecord
from training.space import Draw, conditioned, make_space
from training.text import make_captions
from training.watching.watch import Watch

ADAM_BETAS = (0.9, 0.99)
"""A second moment of shorter memory than the usual 0.999 follows short runs better."""


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
        """This worker's part of the global batch."""
        if batch_size % self.num_workers:
            raise ConfigError(
                f"batch_size is {batch_size}: expected a multiple of the {self.num_workers} "
                "workers; change one of them"
            )
        share = batch_size // self.num_workers
        return range(self.rank * share, (self.rank + 1) * share)


def train(
    record: RunRecord, on_log: OnLog | None = None, device: torch.device | None = None
) -> None:
    """Train to the record's last step. `on_log` is told every line of the metrics."""
    trainer = Trainer(record, Worker.current(device), on_log)
    with trainer.watch:
        trainer.resume()
        trainer.run()


class Trainer:
    """The state of a run in one worker: network, average, optimizer, step, log."""

    def __init__(self, record: RunRecord, worker: Worker, on_log: OnLog | None = None) -> None:
        config = record.config
        self.record, self.config, self.worker = record, config, worker
        self.positions = worker.positions(config.batch_size)
        self.stream = make_stream(config, num_decoders=2)
        self.objective = make_objective(config, worker.device)
        self.space = make_space(config, worker.device)
        self.captions = make_captions(config, worker.device)
        if self.stream.manifest.num_samples <= config.text_cache_captions:
            self.captions.remember(self.stream.captions())
        torch.manual_seed(config.seed)  # the initial weights
        self.model = make_network(config, self.captions.width).to(worker.device)
        self.network = compiled(self.model, config, worker.device)
        if worker.num_workers > 1:
            self.network = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=ADAM_BETAS,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = EMA(self.model, config.ema_decay)
        self.step = 0
        flops = flops_per_image(config, self.captions.width)
        self.watch = Watch(config, worker, self.network, flops.training)
        self.log = Log(self.watch, self.positions.start, on_log)

    # The loop

    def run(self) -> None:
        config = self.config
        steps = range(self.step, config.num_steps)
        with prefetched(self.stream, steps, self.positions) as batches:
            for _ in steps:
                with self.watch.clock.spent("data"):
                    batch = next(batches)
                loss, grad_norm = self.train_step(batch)
                self.step += 1
                self.log.add(loss * len(batch.uids) / config.batch_size, grad_norm, batch.uids)
                saves = self.step % config.checkpoint_every == 0 or self.step == config.num_steps
                if saves or self.step % config.log_every == 0:
                    self.log.flush(self.step, learning_rate(config, self.step - 1), publish=saves)
                if saves:
                    with self.watch.clock.spent("checkpoint"):
                        self.save()

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns this worker's L_simple and the gradient's norm."""
        config, device = self.config, self.worker.device
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        pixels = batch.pixels.to(device, non_blocking=True)
        x_0, condition = self.space.targets(pixels, self._draw_for(Purpose.CONDITION))
        tokens, mask = self.captions.encode(batch.captions)
        draws = self._draws(x_0.shape[1:])
        mask = mask & ~draws.drops_caption[:, None]

        # torch's dropout knows no generator but the global one
        dropout = random(config.seed, Purpose.DROPOUT, self.step, self.worker.rank)
        torch.manual_seed(int(dropout.integers(2**62)))
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        size = config.max_batch_per_worker
        for start in range(0, len(x_0), size):
            rows, last = slice(start, start + size), start + size >= len(x_0)
            with self._synchronised(last), self._autocast():
                given = None if condition is None else condition[rows]
                network = self._bound(tokens[rows], mask[rows], given)
                per_sample = self.objective.per_sample_loss(
                    network, x_0[rows], draws.t[rows], draws.eps[rows]
                )
                torch.autograd.backward(per_sample.weighted.sum() / len(x_0))
            loss += per_sample.simple.detach().sum() / len(x_0)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.ema.update(self.model)
        return loss, grad_norm

    def _draws(self, shape: torch.Size) -> "Draws":
        return draw(self.config, self.step, shape, self.worker.device).part(self.positions)

    def _draw_for(self, purpose: Purpose) -> Draw:
        config, positions = self.config, self.positions
        seed = int(random(config.seed, purpose, self.step).integers(2**62))
        generator = torch.Generator(self.worker.device).manual_seed(seed)
        return Draw(generator, config.batch_size, slice(positions.start, positions.stop))

    def _bound(self, tokens: Tensor, mask: Tensor, condition: Tensor | None) -> Network:
        denoiser = conditioned(self.network, condition)

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return denoiser(x_t.contiguous(memory_format=torch.channels_last), t, tokens, mask)

        return network

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between workers once a step, with the last part of the batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _autocast(self) -> torch.autocast:
        device, precision = self.worker.device.type, self.config.precision
        enabled = precision == "bfloat16" or (precision == "auto" and device == "cuda")
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    # Checkpoints

    def save(self) -> None:
        if self.worker.rank == 0:
            config = self.config
            checkpoint.save(
                config.run,
                self.step,
                {
                    "model": dict(self.model.named_parameters()),
                    "ema": self.ema.weights,
                    "optimizer": checkpoint.optimizer_tensors(self.model, self.optimizer),
                },
                config_digest=self.record.config_digest,
                corpus_digest=self.record.corpus_digest,
            )
            checkpoint.prune(config.run, config.keep_last, config.keep_every)
        if self.worker.num_workers > 1:
            dist.barrier()

    def resume(self) -> None:
        """Take up the newest whole checkpoint; say so, and what was wrong with newer ones."""
        found, damages = checkpoint.load_newest(self.config.run)
        if found is not None:
            self.step = found.step
            self.model.load_state_dict(found.parts["model"])
            self.ema.load(found.parts["ema"], num_updates=found.step)
            checkpoint.load_optimizer_tensors(self.model, self.optimizer, found.parts["optimizer"])
        self._check_that_all_resume_here()
        if self.worker.rank == 0:
            for damage in damages:
                add_event(self.config.run, "damaged checkpoint", message=str(damage))
            add_event(
                self.config.run,
                "start" if found is None else "resume",
                step=self.step,
                num_workers=self.worker.num_workers,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
        self.log.resume(self.step)

    def _check_that_all_resume_here(self) -> None:
        """Machines that each have a RUN of their own would go on from different weights."""
        if self.worker.num_workers > 1:
            steps = [0] * self.worker.num_workers
            dist.all_gather_object(steps, self.step)
            if len(set(steps)) > 1:
                raise InputError(
                    f"{self.config.run}: the workers find different checkpoints there (of steps "
                    f"{', '.join(map(str, steps))}); expected storage that all of them share"
                )


def make_stream(config: Config, num_decoders: int) -> SampleStream:
    return SampleStream(
        config.root,
        selection=config.selection,
        image_size=config.image_size,
        horizontal_flip=config.horizontal_flip,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle_shards=config.shuffle_shards,
        cache_size_mb=config.cache_size_mb,
        num_decoders=num_decoders,
    )


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay_steps = config.decay_share * config.num_steps
    left = min(1.0, (config.num_steps - step) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * warm * left


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step, one row a sample."""

    t: Tensor  # [B] uniform in 0..T-1
    eps: Tensor  # [B, 3, S, S] standard normal
    drops_caption: Tensor  # [B] bool

    def part(self, positions: range) -> "Draws":
        rows = slice(positions.start, positions.stop)
        return Draws(self.t[rows], self.eps[rows], self.drops_caption[rows])


def draw(config: Config, step: int, shape: torch.Size, device: torch.device) -> Draws:
    """For the whole batch, from (seed, step) alone: a part of it would depend on who draws."""
    seed = int(random(config.seed, Purpose.NOISE, step).integers(2**62))
    generator = torch.Generator(device).manual_seed(seed)
    num = config.batch_size
    t = torch.randint(config.num_timesteps, (num,), generator=generator, device=device)
    drops = torch.rand(num, generator=generator, device=device) < config.caption_dropout
    eps = torch.randn(num, *shape, generator=generator, device=device)
    return Draws(t, eps, drops)
