import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from infra import storage
from infra.errors import DamagedError, InputError
from training.checkpoint import (
    CheckpointManifest,
    Tensors,
    check,
    checkpoint_url,
    commit,
    complete_steps,
    load,
    load_newest,
    load_optimizer_tensors,
    optimizer_tensors,
    prune,
    revoke,
    write,
)


def save_step(run: str, step: int) -> None:
    parts = {name: {"w": torch.full((4,), float(step))} for name in ("model", "ema", "optimizer")}
    save(run, step, parts)


def save(run: str, step: int, parts: dict[str, Tensors]) -> None:
    revoke(run, step)
    digests = write(run, step, parts)
    commit(run, CheckpointManifest(step=step, config={}, corpus_digest="d", sha256=digests))


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    run = str(tmp_path)
    save_step(run, 500)
    found = load(run, 500)
    assert found.step == 500
    assert torch.equal(found.parts["ema"]["w"], torch.full((4,), 500.0))
    assert sorted(p.name for p in Path(checkpoint_url(run, 500)).iterdir()) == [
        "checkpoint.json",
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
    ]


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    save_step(str(tmp_path), 1)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {file.stat().st_mode for file in Path(checkpoint_url(str(tmp_path), 1)).iterdir()}
    assert modes == {plain.stat().st_mode}


def test_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_step(str(tmp_path / name), 1)
    first, second = (Path(checkpoint_url(str(tmp_path / name), 1)) for name in ("a", "b"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = str(tmp_path)
    save_step(run, 1)
    save_step(run, 2)
    (Path(checkpoint_url(run, 2)) / "checkpoint.json").unlink()
    assert complete_steps(run) == [1]
    newest, damages = load_newest(run)
    assert newest is not None
    assert newest.step == 1
    assert damages == {}


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damaged_file_is_named_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    run = str(tmp_path)
    save_step(run, 1)
    save_step(run, 2)
    file = Path(checkpoint_url(run, 2)) / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    match damage:
        case "truncated":
            file.write_bytes(data[: len(data) // 2])
        case "changed":
            file.write_bytes(data)
        case "missing":
            file.unlink()
    named = r"step-000002: optimizer\.safetensors (is missing|does not match its sha256)"
    with pytest.raises(DamagedError, match=rf"{named}; .*carrara train.*--checkpoint$"):
        load(run, 2)
    with pytest.raises(DamagedError, match=named):
        check(run, 2)
    check(run, 1)
    newest, damages = load_newest(run)
    assert newest is not None
    assert newest.step == 1
    assert list(damages) == [2]


def test_rows_of_several_files_are_one_tensor_again(tmp_path: Path) -> None:
    run = str(tmp_path)
    rows = torch.arange(10.0).view(5, 2)
    shards = [
        {"w": rows[:2], "b": torch.ones(1), "step": torch.tensor(7.0)},
        {"w": rows[2:4]},
        {"w": rows[4:]},
    ]
    digests: dict[str, str] = {}
    for shard, tensors in enumerate(shards):
        digests |= write(run, 1, {"model": tensors}, shard, 3)
    commit(run, CheckpointManifest(step=1, config={}, corpus_digest="", sha256=digests))
    found = load(run, 1, ("model",)).parts["model"]
    assert torch.equal(found["w"], rows)
    assert found["b"].tolist() == [1]
    assert found["step"].item() == 7
    (Path(checkpoint_url(run, 1)) / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"model-00001-of-00003\.safetensors is missing"):
        load(run, 1, ("model",))


def test_absent_step_names_those_there_are(tmp_path: Path) -> None:
    save_step(str(tmp_path), 7)
    with pytest.raises(InputError, match="no checkpoint of step 8; there are: 7"):
        load(str(tmp_path), 8)


def test_prune_keeps_the_newest_and_the_multiples(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step in range(10, 70, 10):
        save_step(run, step)
    prune(run, keep_last=2, keep_every=30)
    assert complete_steps(run) == [30, 50, 60]
    assert not Path(checkpoint_url(run, 10)).exists()


class Killed(BaseException):
    """What no code catches, as no code sees a SIGKILL."""


@contextmanager
def killed_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends everything in the middle of the `number`-th file written or tree removed."""
    publish, remove = storage.publish, storage.remove
    numbers = iter(range(1000))

    @contextmanager
    def publish_or_die(url: str) -> Iterator[Path]:
        with publish(url) as path:
            yield path
            if next(numbers) == number:
                raise Killed

    def remove_or_die(url: str) -> None:
        if next(numbers) == number:
            for name in storage.list_names(url)[:2]:
                remove(storage.join(url, name))
            raise Killed
        remove(url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", publish_or_die)
        patch.setattr(storage, "remove", remove_or_die)
        yield


@pytest.mark.parametrize("store", ["tmp_path", "s3_bucket"])
def test_kill_at_any_write_leaves_a_whole_checkpoint_and_no_files_for_long(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The manifest of an older try, three parts, the manifest; pruning: a manifest and the rest.
    for number in range(7):
        run = storage.join(str(request.getfixturevalue(store)), str(number))
        save_step(run, 1)
        with killed_at_write(number, monkeypatch), pytest.raises(Killed):
            save_and_prune(run, 2)
        newest, damages = load_newest(run)
        assert newest is not None
        assert newest.step == (1 if number < 5 else 2)
        assert damages == {}
        save_and_prune(run, 3)
        assert load(run, 3).step == 3
        folders = [checkpoint_url(run, step) for step in (1, 2)]
        assert [storage.list_names(folder) for folder in folders] == [[], []]


def save_and_prune(run: str, step: int) -> None:
    save_step(run, step)
    prune(run, keep_last=1, keep_every=0)


SAVE_FOR_EVER = """
import sys, torch
from training.checkpoint import CheckpointManifest, commit, prune, revoke, write
run = sys.argv[1]
for step in range(1, 100_000):
    revoke(run, step)
    parts = dict.fromkeys(("model", "ema", "optimizer"), {"w": torch.full((1_000_000,), step)})
    digests = write(run, step, parts)
    commit(run, CheckpointManifest(step=step, config={}, corpus_digest="", sha256=digests))
    prune(run, keep_last=2, keep_every=0)
"""


def test_killed_process_leaves_only_whole_checkpoints_in_object_storage(s3_bucket: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, s3_bucket])
    deadline = time.monotonic() + 120
    while len(complete_steps(s3_bucket)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    steps = complete_steps(s3_bucket)
    assert steps
    for step in steps:  # a file that is not as its manifest says would be named here
        assert load(s3_bucket, step).parts["model"]["w"][-1] == step


def test_optimizer_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def steps(layer: nn.Linear, optimizer: torch.optim.AdamW, num: int) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            torch.autograd.backward(layer(torch.ones(2, 3)).square().sum())
            optimizer.step()

    straight, optimizer = make()
    steps(straight, optimizer, 3)
    run = str(tmp_path)
    parts: dict[str, dict[str, torch.Tensor]] = {
        "model": dict(straight.named_parameters()),
        "optimizer": optimizer_tensors(straight, optimizer),
    }
    save(run, 3, parts)
    steps(straight, optimizer, 2)

    resumed, optimizer = make()
    found = load(run, 3, ("model", "optimizer"))
    resumed.load_state_dict(found.parts["model"])
    load_optimizer_tensors(resumed, optimizer, found.parts["optimizer"])
    steps(resumed, optimizer, 2)
    assert torch.equal(resumed.weight, straight.weight)
