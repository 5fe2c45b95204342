"""Running out of memory, said as the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from infra.errors import ConfigError
from training.config import Config

FEWER_WEIGHTS = "pass parallel.mode = fsdp with more workers, or take a smaller network"

_HOST_IS_FULL = "can't allocate memory"
"""In the RuntimeError of torch's allocator on the CPU, which has no class of its own."""


@contextmanager
def told_by_its_setting(config: Config, step: int, num_pictures: int) -> Iterator[None]:
    """Around a step whose forward passes have so many pictures."""
    doing = f"in step {step + 1}, at {num_pictures} pictures a forward pass"
    if num_pictures > 1:
        remedy = (
            f"pass max_batch_per_worker = {num_pictures // 2} or less: the batch is then summed up "
            "over more passes, the result is the same"
        )
    elif not config.checkpoint_activations:
        remedy = "pass checkpoint_activations, which computes them twice instead of keeping them"
    else:
        remedy = FEWER_WEIGHTS
    with _told(config, doing, remedy):
        yield


@contextmanager
def told_of_the_state(config: Config) -> Iterator[None]:
    """Around the making of the network, its averages and moments, and all else that is kept."""
    with _told(config, "before the first step, for weights and optimizer", FEWER_WEIGHTS):
        yield


@contextmanager
def told_of_a_look(config: Config, step: int) -> Iterator[None]:
    """Around held-out losses and grids, which are drawn beside the training's own state."""
    remedy = "watch.held_out_every = 0 and watch.grid_every = 0 leave them out"
    with _told(config, f"in looking at held-out pictures and grids after step {step}", remedy):
        yield


@contextmanager
def _told(config: Config, doing: str, remedy: str) -> Iterator[None]:
    told = (
        f"{config.run}: out of memory {doing}; {remedy}; the same command then goes on from the "
        "last checkpoint"
    )
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigError(told) from error
    except RuntimeError as error:
        if _HOST_IS_FULL not in str(error):
            raise
        raise ConfigError(told) from error
