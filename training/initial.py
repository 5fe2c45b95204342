"""Weights to start a run from: those of a folder that `carrara export` wrote."""

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from infra import storage
from infra.errors import DamagedError, InputError
from infra.records import read_mapping
from training.config import Config
from training.exporting.folder import BACKBONE, CONFIG, WEIGHTS, exported_settings

OF_THE_NETWORK = ("network", "unet", "uvit", "text", "space", "image_size", "encoder")
"""Settings that decide which parameters there are."""


def load_initial(network: nn.Module, config: Config) -> None:
    """Into all of its parameters; raises InputError naming what differs where they don't fit."""
    assert config.init_from is not None
    folder = config.init_from
    try:
        settings = read_mapping(storage.join(folder, CONFIG))["settings"]
        with storage.local_copy(storage.join(folder, WEIGHTS)) as path:
            weights = load_file(path)
    except (FileNotFoundError, KeyError):
        raise InputError(
            f"init_from is {folder!r}: no {CONFIG} and {WEIGHTS} there; expected a folder that "
            "`carrara export` wrote"
        ) from None
    except SafetensorError as error:
        raise DamagedError(f"init_from: {folder}/{WEIGHTS} can't be read ({error})") from None
    found = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    own = {name: parameter.shape for name, parameter in network.named_parameters()}
    if {name: weight.shape for name, weight in found.items()} != own:
        here = exported_settings(config)
        different = [
            f"{name} is {settings.get(name)!r} there and {here[name]!r} here"
            for name in OF_THE_NETWORK
            if settings.get(name) != here[name]
        ]
        raise InputError(
            f"init_from is {folder!r}: the weights of another network "
            f"({'; '.join(different) or 'its parameters differ'}); give the settings that it was "
            "trained with, or start without it"
        )
    network.load_state_dict(found)
