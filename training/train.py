"""Train a text-conditioned DDPM on a corpus, on Ray Train.

Reads   ROOT/manifest.json, shards, a selection if one is named
Writes  RUN/run.json, config.toml, checkpoints/, metrics.jsonl, events.jsonl

The same command again continues an unfinished run from its last whole checkpoint, and so do
workers that replace lost ones: the checkpoints in RUN are the only state, Ray keeps none.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.cluster import address_of, connect, num_that_fit
from infra.config import digest_of
from infra.errors import CarraraError, ConfigError, DamagedError, ShortfallError, StorageError
from infra.progress import Bar, track
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell
from training.config import Config, UNetConfig

if TYPE_CHECKING:
    from training.log import Metrics
    from training.network import Flops
    from training.record import RunRecord

__all__ = ["Config", "UNetConfig", "run"]


def run(config: Config) -> Summary:
    from training.checkpoint import complete_steps
    from training.log import metrics_url, read_events, read_metrics
    from training.record import begin

    with Stopwatch() as watch:
        plan = _plan(config)
        record, first_step = plan.record, plan.first_step
        complete = first_step == config.num_steps
        if not complete:
            if plan.is_new:
                begin(record)
            storage.sweep(config.run)
            _tell_cost(plan)
            with track("train", config.num_steps - first_step, "steps") as bar:
                if plan.num_workers is None:
                    _train_here(record, bar, first_step)
                else:
                    _train_on_ray(record, bar, first_step, plan.num_workers)
    return Summary(
        stage="train",
        num_in=config.num_steps,
        num_out=max(complete_steps(config.run)),
        unit="steps",
        counts={"done before": first_step, "samples in the corpus": plan.num_samples},
        seconds=watch.seconds,
        outputs={"run": config.run, "metrics": metrics_url(config.run)},
        details={
            "already_complete": complete,
            "num_parameters": plan.num_parameters,
            "forward_flops_per_image": plan.flops.forward,
            "training_flops_per_image": plan.flops.training,
            "final": read_metrics(config.run)[-1],
            "config_digest": record.config_digest,
            "corpus_digest": record.corpus_digest,
            "resumes": sum(event["event"] == "resume" for event in read_events(config.run)),
        },
    )


@dataclass(frozen=True)
class _Plan:
    record: "RunRecord"
    is_new: bool
    first_step: int
    num_workers: int | tuple[int, int] | None
    """None: in this process, or nothing left to do. Two: the least and the most."""
    num_samples: int
    num_parameters: int
    flops: "Flops"


def _plan(config: Config) -> _Plan:
    """Finds the user's mistakes before anything is written or removed."""
    import torch

    from retrieval.encoding.encoder import load_encoder
    from training.data import make_stream
    from training.diffusion import make_objective
    from training.network import flops_per_image, make_network
    from training.parallel import Worker
    from training.record import RunRecord, continuing, holds
    from training.space import autoencoder_digest
    from training.watching.sinks import check_sinks

    check_sinks(config)
    if (num_workers := config.workers.num_workers) is not None:
        worker = Worker(0, num_workers, torch.device("cpu"))
        worker.passes(config.batch_size, config.max_batch_per_worker)
    make_objective(config)
    stream = make_stream(config)
    encoder = None if config.text.trained else load_encoder(config.encoder)
    text_width = encoder.token_width if encoder else config.text.width
    with torch.device("meta"):
        network = make_network(config, text_width)
    record = RunRecord(
        config=config,
        corpus_digest=stream.digests[0],
        mix_digests=tuple(stream.digests[1:]),
        encoder_digest=encoder.weights_digest if encoder else "",
        autoencoder_digest=autoencoder_digest(config),
    )
    is_new = not holds(record)
    record = record if is_new else continuing(record)
    first_step = 0 if is_new else _num_steps_done(config)
    spread: int | tuple[int, int] | None = None
    if first_step < config.num_steps and not config.workers.local:
        connect(config.workers)
        spread = _num_workers(config)
    return _Plan(
        record=record,
        is_new=is_new,
        first_step=first_step,
        num_workers=spread,
        num_samples=stream.num_samples,
        num_parameters=network.num_parameters,
        flops=flops_per_image(config, text_width),
    )


def _tell_cost(plan: _Plan) -> None:
    cost = {
        "num_parameters": plan.num_parameters,
        "training_flops_per_image": plan.flops.training,
    }
    gflops = plan.flops.training / 1e9
    words = f"train: {plan.num_parameters:,} parameters, {gflops:,.2f} GFLOP a trained image"
    tell("network", words, **cost)


def _num_steps_done(config: Config) -> int:
    """By the newest checkpoint. That of a finished run is reread: nobody else would, until
    pictures are to be drawn of it."""
    from training.checkpoint import check, complete_steps

    steps = complete_steps(config.run)
    if steps and steps[-1] == config.num_steps:
        try:
            check(config.run, config.num_steps)
        except DamagedError:  # the loop tells of it and begins before it
            steps.pop()
    return max(steps, default=0)


def _train_here(record: "RunRecord", bar: Bar, first_step: int) -> None:
    from training import loop
    from training.notices import of_termination
    from training.watching.following import events_told, show

    _set_threads(record.config.threads_per_worker)
    step = first_step

    def on_log(line: "Metrics") -> None:
        nonlocal step
        show(bar, line, step)
        step = line["step"]

    with events_told(record.config.run), of_termination() as notices:
        loop.train(record, on_log, notices=notices)


def _train_on_ray(
    record: "RunRecord", bar: Bar, first_step: int, num_workers: int | tuple[int, int]
) -> None:
    config = record.config
    on_own_cluster = address_of(config.workers) is None
    # Workers stay in this directory, where relative paths in the settings keep their meaning.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if on_own_cluster:  # this machine gets no notice, and it saves a process
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray.train

    from training.watching.following import followed

    with tempfile.TemporaryDirectory(prefix="carrara-train-") as scratch:
        trainer = _trainer_class(on_own_cluster)(
            _work,
            train_loop_config={
                "record": record.model_dump_json(),
                "gets_notices": not on_own_cluster,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
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
        with followed(config.run, bar, first_step):
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
    from training.notices import no_notices, of_preemption
    from training.record import RunRecord

    record = RunRecord.model_validate_json(config["record"])
    cpus = max(1, int(record.config.workers.cpus_per_worker))
    _set_threads(record.config.threads_per_worker or cpus)
    notices = of_preemption if config["gets_notices"] else no_notices
    loop.train(record, device=get_device(), notices=notices)


def _trainer_class(on_own_cluster: bool) -> Any:
    """TorchTrainer; on a cluster that ends with this command, without Ray's watch for a controller
    that died: it asks the dashboard, which is not there, and holds up the end by 12 seconds.

    Ray 2.60 has no setting that leaves it out or shortens its wait, so a method of the trainer that
    is not public is narrowed here; should it go, the run ends those seconds later.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc, unused-ignore]  # Any, as all of Ray
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer if on_own_cluster else TorchTrainer


def _stop_on_our_errors() -> Any:
    """A callback that ends the run at an error that another try would only repeat."""
    from ray.train import UserCallback

    class StopOnOurErrors(UserCallback):  # type: ignore[misc, unused-ignore]  # Any, too
        def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
            for error in worker_exceptions.values():
                ours = _ours(error)
                if ours is not None and not isinstance(ours, StorageError):
                    raise ours

    return StopOnOurErrors()


def _ours(error: BaseException | None) -> CarraraError | None:
    """The CarraraError inside what Ray wrapped around it, if there is one."""
    while error is not None and not isinstance(error, CarraraError):
        error = getattr(error, "_base_exc", None) or error.__cause__
    return error


def _num_workers(config: Config) -> int | tuple[int, int]:
    """As many as asked for, else as the cluster holds; where the run is elastic, also the least."""
    asked, least = config.workers.num_workers, config.parallel.min_workers
    may_grow = address_of(config.workers) is not None  # a cluster elsewhere, maybe from nothing
    fits = asked if may_grow and asked else num_that_fit(config.workers)
    most = asked or min(fits, config.batch_size)
    if least is not None and least > most:
        raise ConfigError(
            f"parallel.min_workers is {least}: expected no more than workers.num_workers, which is "
            f"{most}"
        )
    if most > fits and not may_grow:
        raise ConfigError(
            f"workers.num_workers is {most}: this machine holds {fits} that each ask for "
            f"{config.workers.cpus_per_worker:g} CPUs and {config.workers.gpus_per_worker:g} GPUs"
        )
    return most if least is None else (least, most)


def _resources(config: Config) -> dict[str, float]:
    need = {"CPU": config.workers.cpus_per_worker, "GPU": config.workers.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def _set_threads(num_threads: int) -> None:
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)
