"""An exported checkpoint, loaded by diffusers itself in a process that has no Carrara."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infra.errors import ConflictError, InputError
from training.config import Config
from training.export import Config as ExportConfig
from training.export import run as export
from training.initial import load_initial
from training.model import load_model
from training.network import make_network
from training.train import run as train

CAPTIONS = ["grinning face", "a cat in the snow"]
NUM_STEPS = 8

DRAW = """
import sys
import torch
from diffusers import DiffusionPipeline

folder, out, *captions = sys.argv[1:]
torch.set_num_threads(1)
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
ours = {"training", "infra", "retrieval", "pipeline"} & set(sys.modules)
assert not ours, ours
options = dict(guidance_scale=3.0, seed=5, output_type="pt")
drawn = {
    sampler: pipeline(captions, num_inference_steps=8, sampler=sampler, **options).images
    for sampler in ("ddpm", "ddim", None)
}
torch.save(drawn, out)
assert pipeline(captions[0], 2).images[0].size == (16, 16)
"""


@pytest.fixture(scope="module")
def folder(config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps and its export, side by side."""
    place = tmp_path_factory.mktemp("exported")
    train(config_of(str(place / "run"), num_steps=4, held_out=0.0, learning_rate=1e-2))
    export(ExportConfig(run=str(place / "run"), out=str(place / "out")))
    return place


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str | None, torch.Tensor]:
    """By diffusers, from a working directory and with a path where none of ours is."""
    (folder / "draw.py").write_text(DRAW)
    command = [sys.executable, "-P", "draw.py", "out", "drawn.pt", *CAPTIONS]
    environment = {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    images: dict[str | None, torch.Tensor] = torch.load(folder / "drawn.pt")
    return images


def ours(folder: Path, sampler: str) -> torch.Tensor:
    model = load_model(str(folder / "run"), device="cpu")
    return model.draw(
        CAPTIONS, num_steps=NUM_STEPS, sampler=sampler, guidance_scale=3.0, seed=5, batch_size=64
    )


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_diffusers_draws_the_pictures_of_carrara_sample_bit_for_bit(
    folder: Path, drawn: dict[str | None, torch.Tensor], sampler: str
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(ours(folder, sampler), drawn[sampler])
    finally:
        torch.set_num_threads(threads)


def test_scheduler_of_diffusers_draws_nearly_the_same(
    folder: Path, drawn: dict[str | None, torch.Tensor]
) -> None:
    """Its tables are in float32."""
    assert (ours(folder, "ddpm") - drawn[None]).abs().max() < 2e-3


def test_run_starts_from_an_exported_folder(
    folder: Path, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    config = config_of(str(tmp_path / "run"), init_from=str(folder / "out"))
    network = make_network(config, 16)
    load_initial(network, config)
    model = load_model(str(folder / "run"), device="cpu")
    for name, weight in model.network.named_parameters():
        assert torch.equal(dict(network.named_parameters())[name], weight)
    train(config.model_copy(update={"num_steps": 2}))


def test_folder_of_another_network_is_refused_with_what_differs(
    folder: Path, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    config = config_of(str(tmp_path / "run"), init_from=str(folder / "out"))
    config = config.model_copy(
        update={"unet": config.unet.model_copy(update={"channel_mults": (1, 1)})}
    )
    with pytest.raises(InputError, match=r"another network \(unet is .* there and .* here\)"):
        load_initial(make_network(config, 16), config)
    with pytest.raises(InputError, match=r"expected a folder that `carrara export` wrote"):
        load_initial(torch.nn.Linear(1, 1), config.model_copy(update={"init_from": str(tmp_path)}))


def test_card_and_data_manifest_name_the_corpus_and_no_places(folder: Path) -> None:
    data = json.loads((folder / "out" / "data.json").read_text())
    assert sum(shard["samples"] for shard in data["shards"]) == 24
    assert all(len(shard["sha256"]) == 64 for shard in data["shards"])
    card = (folder / "out" / "README.md").read_text()
    assert f"digest `{data['corpus_digest']}`, 24 samples" in card
    assert "step 4 of 4" in card
    settings = (folder / "out" / "network" / "config.json").read_text()
    assert str(folder) not in settings + card


def test_export_leaves_alone_what_is_there(folder: Path) -> None:
    config = ExportConfig(run=str(folder / "run"), out=str(folder / "out"))
    with pytest.raises(ConflictError, match="not empty"):
        export(config)
