"""A tiny text tower and autoencoder with random weights, and settings that train in seconds."""

import functools
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra.cluster import Workers
from pipeline.corpus import Manifest, read_manifest
from training.config import Config, UNetConfig
from training.record import RunRecord

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 16,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}

TINY_UNET = UNetConfig(
    channels=8,
    channel_mults=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_heads=2,
    dropout=0.1,
)


@pytest.fixture(scope="session")
def tiny_text_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an untrained encoder: a folder as open_clip's own are."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder: Path = tmp_path_factory.mktemp("encoder")
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.CLIP(**TINY_CLIP).state_dict()
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as diffusers saves them: untrained, 4 pixels a side for one latent."""
    import torch
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL  # its methods have no types
    folder: Path = tmp_path_factory.mktemp("autoencoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind(
            block_out_channels=(4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=2,
            norm_num_groups=2,
            layers_per_block=1,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shared_corpus(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Manifest]
) -> str:
    """The root of a corpus that no test changes: 2 shards of 12 emoji each."""
    root = str(tmp_path_factory.mktemp("corpus"))
    make_corpus(root)
    return root


@pytest.fixture
def make_pictures() -> Callable[..., Manifest]:
    """make_pictures(root, sizes): one shard of pictures of these widths and heights, each with its
    size for a caption."""
    import numpy as np

    rng = np.random.default_rng(0)

    def make(root: str, sizes: list[tuple[int, int]]) -> Manifest:
        samples = []
        for number, (width, height) in enumerate(sizes):
            noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(noise).resize((width, height)).save(file, "JPEG")
            key, caption = f"00000{number:04d}", f"{width} by {height}"
            sample = made_sample(key, key, caption, file.getvalue(), width=width, height=height)
            samples.append(sample)
        return write_made_manifest(root, [write_made_shard(root, "00000", samples)])

    return make


@pytest.fixture(scope="session")
def config_of(shared_corpus: str, tiny_text_encoder: str) -> Callable[..., Config]:
    """config_of(run, **changes): 12 steps of 8 pictures of 16 pixels, in this process."""

    def make(run: str, **changes: Any) -> Config:
        settings: dict[str, Any] = {
            "root": shared_corpus,
            "run": run,
            "encoder": tiny_text_encoder,
            "image_size": 16,
            "unet": TINY_UNET,
            "num_steps": 12,
            "batch_size": 8,
            "warmup_steps": 2,
            "checkpoint_every": 4,
            "checkpoint_patience_s": 60,
            "log_every": 2,
            "workers": Workers(local=True),
            "threads_per_worker": 1,
        }
        return Config(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def trained_run(config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that no test changes: 12 steps, checkpoints of steps 8 and 12."""
    from training import train

    config = config_of(run=str(tmp_path_factory.mktemp("trained") / "run"))
    train.run(config)
    return config.run


@pytest.fixture
def tiny_config(config_of: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """tiny_config(**changes): config_of with a fresh RUN of the test's own."""
    return functools.partial(config_of, run=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def record_of() -> Callable[[Config], RunRecord]:
    """What `train` would write of such a run, to give to the loop itself."""

    def make(config: Config) -> RunRecord:
        digest = read_manifest(config.root).digest
        return RunRecord(config=config, corpus_digest=digest, encoder_digest="")

    return make


@pytest.fixture(scope="session")
def train_in_processes(
    tmp_path_factory: pytest.TempPathFactory, record_of: Callable[[Config], RunRecord]
) -> Callable[[list[list[Config]]], list[str]]:
    """train_in_processes(phases) trains with torch.distributed and without Ray: in every phase as
    many processes as it has configs, each with its own. Returns what they raised of ours."""

    def train(phases: list[list[Config]]) -> list[str]:
        folder = tmp_path_factory.mktemp("processes")
        plan = folder / "plan.json"
        steps = [
            {
                "rendezvous": f"file://{folder}/rendezvous-{number}",
                "num_workers": len(configs),
                "records": [record_of(config).model_dump_json() for config in configs],
            }
            for number, configs in enumerate(phases)
        ]
        plan.write_text(json.dumps(steps))
        script = str(Path(__file__).with_name("processes.py"))
        crew = [
            subprocess.Popen([sys.executable, script, str(rank), str(plan)])
            for rank in range(max(map(len, phases)))
        ]
        assert [process.wait(600) for process in crew] == [0] * len(crew)
        return [told.read_text() for told in sorted(folder.glob("plan.json.*"))]

    return train


class HeldStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Storage whose writes wait until they are let through."""

    protocol = "held"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened = threading.Event()

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        assert self.opened.wait(60)
        super().put_file(*args, **kwargs)


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Lets through what is written to held://."""
    fsspec.register_implementation("held", HeldStore, clobber=True)
    HeldStore.opened.clear()
    yield HeldStore.opened
    HeldStore.opened.set()
    HeldStore.store.clear()
