"""Every kind of model as a folder that diffusers loads in a process without Carrara, and back."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import Config, UNetConfig, UViTConfig
from training.export import Config as ExportConfig
from training.export import run as export
from training.initial import load_initial
from training.model import load_model
from training.network import make_network
from training.train import run as train

CAPTIONS = ["grinning face", "a cat in the snow"]
SMALL_SIDE = 4
DRAWN: dict[str, Any] = {"guidance_scale": 3.0, "seed": 5}

UNET = UNetConfig(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(), num_heads=2
)
UVIT = UViTConfig(channels=(16,), num_res_blocks=1, width=32, num_layers=1, head_width=16)
TRAINED_TEXT = {"trained": True, "width": 16, "num_layers": 1, "num_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "uvit": {"network": "uvit", "uvit": UVIT},
    "trained text": {"network": "uvit", "uvit": UVIT, "text": TRAINED_TEXT},
    "super-resolution": {"unet": UNET, "space": {"upscale_from": SMALL_SIDE}},
    "latents": {"unet": UNET, "space": {"autoencoder": "to be made"}},
}

DRAW = """
import sys
from pathlib import Path
import torch
from diffusers import DiffusionPipeline

place, *captions = sys.argv[1:]
torch.set_num_threads(1)
small = torch.load("small.pt")
drawn = {}
for folder in sorted(Path(place).glob("*/out")):
    kind = folder.parent.name
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    own = {"small": small} if kind == "super-resolution" else {}
    options = dict(guidance_scale=3.0, seed=5, output_type="pt")
    try:
        drawn[kind, "scheduler"] = pipeline(captions, num_inference_steps=4, **options).images
    except ValueError as error:
        drawn[kind, "scheduler"] = str(error)
    try:
        drawn[kind, "bare"] = pipeline(captions, 2, sampler="ddim", **options).images
    except ValueError as error:
        drawn[kind, "bare"] = str(error)
    options |= dict(num_inference_steps=4, sampler="ddim")
    drawn[kind, "ddim"] = pipeline(captions, **options, **own).images
ours = {"training", "infra", "retrieval", "pipeline"} & set(sys.modules)
assert not ours, ours
torch.save(drawn, "drawn.pt")
"""


@pytest.fixture(scope="module")
def configs(
    config_of: Callable[..., Config],
    tiny_autoencoder: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Config]:
    """Of a run of each kind, trained for three steps and exported."""
    place = tmp_path_factory.mktemp("kinds")
    made = {}
    for kind, changes in KINDS.items():
        if kind == "latents":
            changes = changes | {"space": {"autoencoder": tiny_autoencoder}}
        settings = {"num_steps": 3, "learning_rate": 1e-2, "held_out": 0.0}
        made[kind] = config_of(str(place / kind / "run"), **(settings | changes))
        train(made[kind])
        export(ExportConfig(run=made[kind].run, out=str(place / kind / "out")))
    return made


@pytest.fixture(scope="module")
def small() -> Tensor:
    return torch.rand(2, 3, SMALL_SIDE, SMALL_SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def drawn(configs: dict[str, Config], small: Tensor) -> dict[tuple[str, str], Any]:
    """By kind and way, all in one process that has none of our code in its path."""
    place = Path(configs["uvit"].run).parents[1]
    torch.save(small, place / "small.pt")
    (place / "draw.py").write_text(DRAW)
    command = [sys.executable, "-P", "draw.py", str(place), *CAPTIONS]
    environment = {"HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], Any] = torch.load(place / "drawn.pt")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_the_pictures_of_carrara_sample_bit_for_bit(
    kind: str,
    configs: dict[str, Config],
    small: Tensor,
    drawn: dict[tuple[str, str], Any],
) -> None:
    model = load_model(configs[kind].run, device="cpu")
    given = small if kind == "super-resolution" else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = model.draw(
            CAPTIONS, num_steps=4, sampler="ddim", batch_size=64, small=given, **DRAWN
        )
    finally:
        torch.set_num_threads(threads)
    assert ours.shape == (2, 3, 16, 16)
    assert not torch.equal(ours[0], ours[1])
    assert torch.equal(ours, drawn[kind, "ddim"])


@pytest.mark.parametrize("kind", ["uvit", "trained text", "latents"])
def test_a_scheduler_of_diffusers_draws_too(kind: str, drawn: dict[tuple[str, str], Any]) -> None:
    pictures = drawn[kind, "scheduler"]
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.abs().max() <= 1


def test_super_resolution_asks_for_what_it_enlarges(drawn: dict[tuple[str, str], Any]) -> None:
    for way in ("scheduler", "bare"):
        told = drawn["super-resolution", way]
        assert told == (
            "this model enlarges pictures of 4 pixels: expected sampler= one of Carrara's, and "
            "small= the pictures, [n, 3, 4, 4] in -1..1"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_from_the_folder(kind: str, configs: dict[str, Config]) -> None:
    folder = str(Path(configs[kind].run).with_name("out"))
    config = configs[kind].model_copy(update={"init_from": folder})
    network = make_network(config, 16)
    load_initial(network, config)
    model = load_model(config.run, device="cpu")
    loaded = dict(network.named_parameters())
    for name, weight in model.network.named_parameters():
        assert torch.equal(loaded[name], weight)
