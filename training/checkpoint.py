"""A run's checkpoints: whole or not there, on any fsspec URL, readable without pickle.

RUN/checkpoints/step-000500/model.safetensors       the weights
                            ema.safetensors         their moving average, for sampling
                            optimizer.safetensors   AdamW's moments, by parameter name
                            checkpoint.json         step, settings, sha256 of the files; last

Workers that hold the state in shards write a file each, model-00000-of-00004.safetensors and so on:
their rows one after another, in the files' order, are the tensor. Loaded, it is whole again, so
any number of workers goes on from what any other number wrote.
"""

from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from infra import storage
from infra.errors import DamagedError, InputError
from training.parallel import WHOLE, Layout, local

MANIFEST = "checkpoint.json"
REMEDY = (
    "the same `carrara train` makes it again from the checkpoint before it; or name an older one "
    "by --checkpoint"
)
PARTS = ("model", "ema", "optimizer")
Tensors = dict[str, Tensor]


class CheckpointManifest(BaseModel):
    model_config = ConfigDict(frozen=True)

    step: int
    """Optimizer steps taken."""
    config: dict[str, Any]
    """The settings that decide what the weights are."""
    corpus_digest: str
    sha256: dict[str, str]
    """Of every file, by name."""


@dataclass(frozen=True)
class Checkpoint:
    manifest: CheckpointManifest
    parts: dict[str, Tensors]

    @property
    def step(self) -> int:
        return self.manifest.step


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def checkpoint_url(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", checkpoint_name(step))


def revoke(run: str, step: int) -> None:
    """From here on it is no checkpoint: before files of that step are written, or where some were
    found damaged."""
    storage.remove(storage.join(checkpoint_url(run, step), MANIFEST))


def write(
    run: str, step: int, parts: dict[str, Tensors], shard: int = 0, num_shards: int = 1
) -> dict[str, str]:
    """Write one worker's files of a checkpoint; returns their sha256 by name."""
    digests = {}
    for part, tensors in parts.items():
        name = file_name(part, shard, num_shards)
        with storage.publish(storage.join(checkpoint_url(run, step), name)) as path:
            path.touch()
            mode = path.stat().st_mode
            safetensors.torch.save_file(tensors, path)
            path.chmod(mode)  # others may read it, where safetensors says its owner alone
            digests[name] = storage.sha256(str(path))
    return digests


def file_name(part: str, shard: int, num_shards: int) -> str:
    return f"{part}{'' if num_shards == 1 else f'-{shard:05d}-of-{num_shards:05d}'}.safetensors"


def commit(run: str, manifest: CheckpointManifest) -> None:
    """After the last file: from here on it is a checkpoint."""
    url = storage.join(checkpoint_url(run, manifest.step), MANIFEST)
    storage.publish_text(url, manifest.model_dump_json(indent=2) + "\n")


def complete_steps(run: str) -> list[int]:
    """The steps of all checkpoints that were written to their end, oldest first."""
    folder = storage.join(run, "checkpoints")
    steps = [
        int(name.removeprefix("step-"))
        for name in storage.list_names(folder)
        if name.startswith("step-") and storage.exists(storage.join(folder, name, MANIFEST))
    ]
    return sorted(steps)


def load(run: str, step: int, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    """Raises InputError where there is none of that step, DamagedError naming a damaged file."""
    try:
        return _load(run, step, parts)
    except DamagedError as error:
        raise DamagedError(f"{error}; {REMEDY}") from None


def check(run: str, step: int) -> None:
    """Raises DamagedError where a file is not as it was written; reads all of them, keeps none."""
    url = checkpoint_url(run, step)
    for name, sha256 in _read_manifest(run, step).sha256.items():
        try:
            _check_digest(url, name, storage.sha256(storage.join(url, name)), sha256)
        except FileNotFoundError:
            raise _missing(url, name) from None


def _load(run: str, step: int, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    url, manifest = checkpoint_url(run, step), _read_manifest(run, step)
    return Checkpoint(manifest, {part: _load_part(url, manifest, part) for part in parts})


def _read_manifest(run: str, step: int) -> CheckpointManifest:
    url = checkpoint_url(run, step)
    try:
        text = storage.read_text(storage.join(url, MANIFEST))
        return CheckpointManifest.model_validate_json(text)
    except FileNotFoundError:
        have = ", ".join(map(str, complete_steps(run))) or "none"
        raise InputError(f"{run}: no checkpoint of step {step}; there are: {have}") from None
    except ValidationError:
        raise DamagedError(f"checkpoint {url}: {MANIFEST} can't be read") from None


def _load_part(url: str, manifest: CheckpointManifest, part: str) -> Tensors:
    names = sorted(n for n in manifest.sha256 if n.partition(".")[0].partition("-")[0] == part)
    shards: dict[str, list[Tensor]] = {}
    for name in names:
        for key, tensor in _load_file(url, name, manifest.sha256[name]).items():
            shards.setdefault(key, []).append(tensor)
    return {key: rows[0] if len(rows) == 1 else torch.cat(rows) for key, rows in shards.items()}


def _load_file(url: str, name: str, sha256: str) -> Tensors:
    file = storage.join(url, name)
    try:
        with storage.local_copy(file) as path:
            _check_digest(url, name, storage.sha256(str(path)), sha256)
            return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise _missing(url, name) from None
    except SafetensorError as error:
        raise DamagedError(f"checkpoint {url}: {name} can't be read ({error})") from None


def _check_digest(url: str, name: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise DamagedError(f"checkpoint {url}: {name} does not match its sha256")


def _missing(url: str, name: str) -> DamagedError:
    return DamagedError(f"checkpoint {url}: {name} is missing")


def load_newest(run: str) -> tuple[Checkpoint | None, dict[int, DamagedError]]:
    """The newest whole checkpoint, if any, and what was wrong with each newer one, by its step."""
    damages: dict[int, DamagedError] = {}
    for step in reversed(complete_steps(run)):
        try:
            return _load(run, step), damages
        except DamagedError as error:
            damages[step] = error
    return None, damages


def prune(run: str, keep_last: int, keep_every: int) -> None:
    """Keep the `keep_last` newest checkpoints and those at multiples of `keep_every`; remove the
    others, and what killed writers left of some."""
    complete = complete_steps(run)
    kept = {step for step in complete if keep_every and step % keep_every == 0}
    kept_names = {checkpoint_name(step) for step in kept.union(complete[-keep_last:])}
    folder = storage.join(run, "checkpoints")
    for name in storage.list_names(folder):
        if name not in kept_names:
            url = storage.join(folder, name)
            # First: a half-removed checkpoint must not pass for one.
            storage.remove(storage.join(url, MANIFEST))
            storage.remove(url)


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's state as flat named tensors: `<parameter>/exp_avg` and so on."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_weights(module: nn.Module, weights: Tensors, layout: Layout = WHOLE) -> None:
    """Whole weights into the module, of which this worker may hold a shard."""
    parameters = dict(module.named_parameters())
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(layout.rows(weights[name]))


def load_optimizer_tensors(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    layout: Layout = WHOLE,
) -> None:
    parameters = dict(module.named_parameters())
    places = {name: i for i, name in enumerate(parameters)}
    state: dict[int, Tensors] = {i: {} for i in places.values()}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        moment = tensor
        if tensor.shape == parameters[name].shape:
            # The fused optimizer walks through memory: moments must lie as their parameter does,
            # which in channels-last is not as the file has them.
            moment = torch.empty_like(parameters[name].detach(), dtype=tensor.dtype)
            local(moment).copy_(layout.rows(tensor))
        state[places[name]][key] = moment
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
