import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra.errors import StorageError
from training import writer as writing
from training.checkpoint import Tensors, complete_steps, load
from training.config import Config
from training.parallel import WHOLE, Worker
from training.record import RunRecord
from training.writer import CheckpointWriter

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def record_in(
    config_of: Callable[..., Config], record_of: Callable[[Config], RunRecord]
) -> Callable[[str], RunRecord]:
    return lambda run: record_of(config_of(run))


def state(device: str, value: float) -> dict[str, Tensors]:
    weights = torch.full((4, 3, 2, 2), value, device=device)
    moments = {"w/exp_avg": torch.full((4, 3), value, device=device), "w/step": torch.tensor(value)}
    return {
        "model": {"w": weights.to(memory_format=torch.channels_last)},
        "ema": {"w": weights},
        "optimizer": moments,
    }


@pytest.mark.parametrize("device", DEVICES)
def test_state_may_change_while_its_copy_is_written(
    held: threading.Event, record_in: Callable[[str], RunRecord], device: str
) -> None:
    run = "held://run"
    writer = CheckpointWriter(record_in(run), Worker(0, 1, torch.device(device)), WHOLE)
    assert writer.is_free(0)
    parts = state(device, 4.0)
    writer.start(4, parts)
    for tensors in parts.values():
        for tensor in tensors.values():
            tensor.fill_(math.nan)
    assert not writer.is_free(0.1)
    assert complete_steps(run) == []
    held.set()
    writer.finish()
    found = load(run, 4)
    for part, tensors in state("cpu", 4.0).items():
        for name, tensor in tensors.items():
            assert torch.equal(found.parts[part][name], tensor)


def test_second_checkpoint_reuses_the_memory_of_the_first(
    record_in: Callable[[str], RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And asks for none, which on a GPU's host would be locked each time."""
    asked: list[torch.Size] = []

    def counted(tensor: Tensor) -> Tensor:
        asked.append(tensor.shape)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    monkeypatch.setattr(writing, "_host_memory", counted)
    run = str(tmp_path)
    writer = CheckpointWriter(record_in(run), Worker(0, 1, torch.device("cpu")), WHOLE)
    for step in (1, 2):
        writer.start(step, state("cpu", float(step)))
        assert writer.is_free(None)
    assert len(asked) == sum(map(len, state("cpu", 0.0).values()))
    for step in (1, 2):
        assert (load(run, step).parts["model"]["w"] == step).all()


def test_place_that_cannot_be_written_is_told_at_the_next_look(
    record_in: Callable[[str], RunRecord], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    writer = CheckpointWriter(record_in(str(tmp_path)), Worker(0, 1, torch.device("cpu")), WHOLE)
    writer.start(1, state("cpu", 1.0))
    with pytest.raises(StorageError, match=r"checkpoints.*can't be written"):
        writer.finish()
