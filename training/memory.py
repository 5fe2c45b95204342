"""Running out of memory, said as the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from infra.errors import ConfigError
from training.config import Config

_HOST_IS_FULL = "can't allocate memory"
"""In the RuntimeError of torch's allocator on the CPU, which has no class of its own."""


@contextmanager
def told_by_its_setting(config: Config, step: int, num_pictures: int) -> Iterator[None]:
    """Around a step whose forward passes have so many pictures."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(config, step, num_pictures) from error
    except RuntimeError as error:
        if _HOST_IS_FULL not in str(error):
            raise
        raise _out_of_memory(config, step, num_pictures) from error


def _out_of_memory(config: Config, step: int, num_pictures: int) -> ConfigError:
    if num_pictures > 1:
        remedy = (
            f"pass max_batch_per_worker = {num_pictures // 2} or less: the batch is then summed up "
            "over more passes, the result is the same"
        )
    elif not config.checkpoint_activations:
        remedy = "pass checkpoint_activations, which computes them twice instead of keeping them"
    else:
        remedy = "pass parallel.mode = fsdp with more workers, or take a smaller network"
    return ConfigError(
        f"{config.run}: out of memory in step {step + 1}, at {num_pictures} pictures a forward "
        f"pass; {remedy}; the same command then goes on from the last checkpoint"
    )
