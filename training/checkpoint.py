"""A run's checkpoints: whole or not there, on any fsspec URL, readable without pickle.

RUN/checkpoints/step-000500/model.safetensors       the weights
                            ema.safetensors         their moving average, for sampling
                            optimizer.safetensors   AdamW's moments, by parameter name
                            checkpoint.json         step, digests, sha256 of the files; last
"""

from dataclasses import dataclass

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from infra import storage
from infra.errors import DamagedError, InputError

MANIFEST = "checkpoint.json"
Tensors = dict[str, Tensor]


class CheckpointManifest(BaseModel):
    model_config = ConfigDict(frozen=True)

    step: int
    """Optimizer steps taken."""
    config_digest: str
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


def save(
    run: str, step: int, parts: dict[str, Tensors], *, config_digest: str, corpus_digest: str
) -> None:
    url = checkpoint_url(run, step)
    storage.remove(storage.join(url, MANIFEST))  # a damaged one of this step must not outlive it
    digests = {}
    for part, tensors in parts.items():
        name = f"{part}.safetensors"
        file = storage.join(url, name)
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        with storage.publish(file) as path:
            safetensors.torch.save_file(contiguous, path)
            digests[name] = storage.sha256(str(path))
    manifest = CheckpointManifest(
        step=step, config_digest=config_digest, corpus_digest=corpus_digest, sha256=digests
    )
    storage.publish_text(storage.join(url, MANIFEST), manifest.model_dump_json(indent=2) + "\n")


def complete_steps(run: str) -> list[int]:
    """The steps of all checkpoints that were written to their end, oldest first."""
    folder = storage.join(run, "checkpoints")
    steps = [
        int(name.removeprefix("step-"))
        for name in storage.list_names(folder)
        if name.startswith("step-") and storage.exists(storage.join(folder, name, MANIFEST))
    ]
    return sorted(steps)


def load(run: str, step: int, parts: tuple[str, ...] = ("model", "ema", "optimizer")) -> Checkpoint:
    """Raises InputError where there is none of that step, DamagedError naming a damaged file."""
    url = checkpoint_url(run, step)
    try:
        text = storage.read_text(storage.join(url, MANIFEST))
        manifest = CheckpointManifest.model_validate_json(text)
    except FileNotFoundError:
        have = ", ".join(map(str, complete_steps(run))) or "none"
        raise InputError(f"{run}: no checkpoint of step {step}; there are: {have}") from None
    except ValidationError:
        raise DamagedError(f"checkpoint {url}: {MANIFEST} can't be read") from None
    return Checkpoint(manifest, {part: _load_part(url, manifest, part) for part in parts})


def _load_part(url: str, manifest: CheckpointManifest, part: str) -> Tensors:
    name = f"{part}.safetensors"
    file = storage.join(url, name)
    try:
        with storage.local_copy(file) as path:
            if storage.sha256(str(path)) != manifest.sha256[name]:
                raise DamagedError(f"checkpoint {url}: {name} does not match its sha256")
            return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise DamagedError(f"checkpoint {url}: {name} is missing") from None
    except SafetensorError as error:
        raise DamagedError(f"checkpoint {url}: {name} can't be read ({error})") from None


def load_newest(run: str) -> tuple[Checkpoint | None, list[DamagedError]]:
    """The newest whole checkpoint, if any, and what was wrong with each newer one."""
    damages: list[DamagedError] = []
    for step in reversed(complete_steps(run)):
        try:
            return load(run, step), damages
        except DamagedError as error:
            damages.append(error)
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


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors: `<parameter>/exp_avg` and so on."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    places = {name: i for i, (name, _) in enumerate(module.named_parameters())}
    parameters = list(module.parameters())
    state: dict[int, dict[str, Tensor]] = {i: {} for i in places.values()}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter, moment = parameters[places[name]], tensor
        if tensor.shape == parameter.shape:
            # The fused optimizer walks through memory: moments must lie as their parameter does,
            # which in channels-last is not as the file has them.
            moment = torch.empty_like(parameter.detach(), dtype=tensor.dtype).copy_(tensor)
        state[places[name]][key] = moment
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
