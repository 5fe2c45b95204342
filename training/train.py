"""Train a text-conditioned DDPM on a corpus, on Ray Train.

Reads   ROOT/manifest.json, shards, a selection if one is named
Writes  RUN/run.json, config.toml, checkpoints/, metrics.jsonl, events.jsonl

The same command again continues an unfinished run from its last whole checkpoint, and so do
workers that replace lost ones: the checkpoints in RUN are the only state, Ray keeps none.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.config import digest_of
from infra.errors import CarraraError, ConfigError, ShortfallError
from infra.progress import Bar, track
from infra.summary import Stopwatch, Summary
from training.config import Config, UNetConfig

if TYPE_CHECKING:
    from training.log import Metrics
    from training.record import RunRecord

__all__ = ["Config", "UNetConfig", "run"]

POLL_EVERY_S = 1.0


def run(config: Config) -> Summary:
    from training.checkpoint import complete_steps
    from training.log import read_events, read_metrics
    from training.record import claim

    with Stopwatch() as watch:
        plan = _plan(config)
        record, config = plan.record, plan.record.config
        claim(record)
        first_step = max(complete_steps(config.run), default=0)
        complete = first_step == config.num_steps
        if not complete:
            storage.sweep(config.run)
            _train(record, first_step)
    return Summary(
        stage="train",
        num_in=config.num_steps,
        num_out=max(complete_steps(config.run)),
        unit="steps",
        counts={"done before": first_step, "samples in the corpus": plan.num_samples},
        seconds=watch.seconds,
        outputs={"run": config.run, "metrics": storage.join(config.run, "metrics.jsonl")},
        details={
            "already_complete": complete,
            "num_parameters": plan.num_parameters,
            "final": read_metrics(config.run)[-1],
            "config_digest": record.config_digest,
            "corpus_digest": record.corpus_digest,
            "resumes": sum(event["event"] == "resume" for event in read_events(config.run)),
        },
    )


@dataclass(frozen=True)
class _Plan:
    record: "RunRecord"
    num_samples: int
    num_parameters: int


def _plan(config: Config) -> _Plan:
    """Finds the user's mistakes before anything is written or a worker is started."""
    import torch

    from retrieval.encoder import load_encoder
    from training.loop import make_stream
    from training.record import RunRecord
    from training.schedule import make_schedule
    from training.unet import UNet

    if (num_workers := config.workers.num_workers) is not None:
        _check_shares(config.batch_size, num_workers)
    make_schedule(config.schedule, config.num_timesteps)
    stream = make_stream(config, num_decoders=1)
    encoder = load_encoder(config.encoder)
    with torch.device("meta"):
        unet = UNet(config.unet, config.image_size, encoder.token_width)
    record = RunRecord(
        config=config,
        corpus_digest=stream.manifest.digest,
        encoder_digest=encoder.weights_digest,
    )
    return _Plan(record, stream.num_samples, unet.num_parameters)


def _train(record: "RunRecord", first_step: int) -> None:
    config = record.config
    with track("train", config.num_steps - first_step, "steps") as bar:
        if config.workers.local:
            from training import loop

            _set_threads(config.threads_per_worker)
            done = first_step

            def on_log(line: "Metrics") -> None:
                nonlocal done
                bar.advance(line["step"] - done, note=_note(line))
                done = line["step"]

            loop.train(record, on_log)
        else:
            _train_on_ray(record, bar, first_step)


def _train_on_ray(record: "RunRecord", bar: Bar, first_step: int) -> None:
    # Workers stay where they are put: relative names in user's environment keep their meaning.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray.train
    from ray.train.torch import TorchTrainer

    from infra.cluster import connect

    config = record.config
    connect(config.workers)
    with tempfile.TemporaryDirectory(prefix="carrara-train-") as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"record": record.model_dump_json()},
            scaling_config=ray.train.ScalingConfig(
                num_workers=_num_workers(config),
                use_gpu=config.workers.gpus_per_worker > 0,
                resources_per_worker=_resources(config),
            ),
            run_config=ray.train.RunConfig(
                # Ray resumes silently from a name it knows; ours are all new.
                name=f"carrara-{digest_of([config.run, time.time_ns()])}",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
                callbacks=[_stop_on_our_errors()],
            ),
        )
        with _following(config.run, bar, first_step):
            try:
                trainer.fit()
            except ray.train.ControllerError as error:
                raise _ours(error.controller_failure) or error from error
            except ray.train.WorkerGroupError as error:
                first = next(iter(error.worker_failures.values()), error)
                reason = str(first).strip().splitlines()[-1]
                raise ShortfallError(
                    f"{config.run}: workers failed more than max_failures = "
                    f"{config.max_failures} times, at last with: {reason}; the same command "
                    "continues from the last checkpoint"
                ) from error


def _work(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker, with torch.distributed initialised."""
    from ray.train.torch import get_device

    from training import loop
    from training.record import RunRecord

    record = RunRecord.model_validate_json(config["record"])
    cpus = max(1, int(record.config.workers.cpus_per_worker))
    _set_threads(record.config.threads_per_worker or cpus)
    loop.train(record, device=get_device())


def _stop_on_our_errors() -> Any:
    """A callback that ends the run at a user's mistake, which another try would only repeat."""
    from ray.train import UserCallback

    class StopOnOurErrors(UserCallback):  # type: ignore[misc, unused-ignore]
        def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
            for error in worker_exceptions.values():
                if (ours := _ours(error)) is not None:
                    raise ours

    return StopOnOurErrors()


def _ours(error: BaseException | None) -> CarraraError | None:
    """The CarraraError inside what Ray wrapped around it, if there is one."""
    while error is not None and not isinstance(error, CarraraError):
        error = getattr(error, "_base_exc", None) or error.__cause__
    return error


def _num_workers(config: Config) -> int:
    """As many as asked for; else as many as the cluster holds and the batch divides among."""
    import ray

    if config.workers.num_workers is not None:
        return config.workers.num_workers
    have, need = ray.cluster_resources(), _resources(config)
    fits = int(min(have.get(name, 0.0) // amount for name, amount in need.items()))
    return max(n for n in range(1, max(fits, 1) + 1) if config.batch_size % n == 0)


def _check_shares(batch_size: int, num_workers: int) -> None:
    if num_workers < 1 or batch_size % num_workers:
        raise ConfigError(
            f"workers.num_workers is {num_workers}: expected a divisor of batch_size, which is "
            f"{batch_size}"
        )


def _resources(config: Config) -> dict[str, float]:
    need = {"CPU": config.workers.cpus_per_worker, "GPU": config.workers.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def _set_threads(num_threads: int) -> None:
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)


# Progress


@contextmanager
def _following(run: str, bar: Bar, first_step: int) -> Iterator[None]:
    """Moves the bar by what the first worker publishes, wherever it runs."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, bar, first_step, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(run: str, bar: Bar, step: int, stop: threading.Event) -> None:
    from training.log import read_events, read_metrics

    num_events = len(read_events(run))
    stopping = False
    while not stopping:
        stopping = stop.wait(POLL_EVERY_S)  # one more look after the end
        events = read_events(run)
        for event in events[num_events:]:
            if event["event"] != "start":
                told = event.get("message") or f"from step {event['step']}"
                print(f"train: {event['event']}: {told}", file=sys.stderr, flush=True)
        num_events = len(events)
        lines = read_metrics(run)
        if lines and lines[-1]["step"] > step:
            bar.advance(lines[-1]["step"] - step, note=_note(lines[-1]))
            step = lines[-1]["step"]


def _note(line: "Metrics") -> str:
    return f"loss {line['loss']:.4f}, {line['images_per_s']:.0f} images/s"
