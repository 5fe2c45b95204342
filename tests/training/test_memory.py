"""Out of memory: the setting that helps is named, and the next one where that one is spent."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from infra.errors import ConfigError
from training.config import Config
from training.memory import told_by_its_setting, told_of_a_look, told_of_the_state

Around = Callable[[Config], AbstractContextManager[None]]
CONFIG = Config(root="corpus", run="run")
SPARING = Config(root="corpus", run="run", checkpoint_activations=True)
NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
)


def a_pass_of(num_pictures: int) -> Around:
    return lambda config: told_by_its_setting(config, 4, num_pictures)


@pytest.mark.parametrize(
    ("around", "config", "told"),
    [
        (told_of_the_state, CONFIG, r"before the first step, .*; pass parallel\.mode = fsdp with"),
        (lambda config: told_of_a_look(config, 4), CONFIG, r"in looking .* step 4; watch\.held"),
        (a_pass_of(7), CONFIG, r"in step 5, at 7 .*; pass max_batch_per_worker = 3 or less"),
        (a_pass_of(3), SPARING, r"in step 5, at 3 .*; pass max_batch_per_worker = 1 or less"),
        (a_pass_of(1), CONFIG, r"in step 5, at 1 .*; pass checkpoint_activations"),
        (a_pass_of(1), SPARING, r"in step 5, at 1 .*; pass parallel\.mode = fsdp .* smaller"),
    ],
)
def test_setting_that_helps_is_named(around: Around, config: Config, told: str) -> None:
    for error in NO_MEMORY:
        with pytest.raises(ConfigError, match=f"out of memory {told}") as caught:
            fail(around(config), error)
        assert str(caught.value).startswith(f"{config.run}: ")
        assert caught.value.__cause__ is error
        assert str(caught.value).endswith("the same command then goes on from the last checkpoint")
        assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    for around in (told_of_the_state, a_pass_of(1)):
        with pytest.raises(RuntimeError, match="shapes") as caught:
            fail(around(CONFIG), other)
        assert caught.value is other


def fail(inside: AbstractContextManager[None], error: Exception) -> None:
    with inside:
        raise error
