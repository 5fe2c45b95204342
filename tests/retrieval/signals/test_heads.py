"""Heads with made-up weights of the published shapes, against torch's own modules."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.made_corpus import change_samples
from infra.cluster import Workers
from infra.errors import ConfigError, InputError
from infra.summary import Summary
from pipeline import score
from pipeline.corpus import (
    Manifest,
    read_columns,
)
from retrieval import embed
from retrieval.embedding.embeddings import embeddings_url

HERE = Workers(local=True)
DIM = 32
"""Of the tiny encoder's embeddings."""
BROKEN = 3
"""Number of the sample whose picture can't be decoded."""


class Standardise(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(dim) / 10)
        self.register_buffer("variance", torch.rand(dim) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("variance").sqrt()


class L14Safety(nn.Module):
    """The PyTorch form of LAION's autokeras model for ViT-L/14."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Standardise(dim)
        self.linear_1, self.linear_2 = nn.Linear(dim, 64), nn.Linear(64, 512)
        self.linear_3, self.linear_4 = nn.Linear(512, 256), nn.Linear(256, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            x = layer(self.norm(x) if layer is self.linear_1 else x).relu()
        scores: torch.Tensor = self.linear_4(x).sigmoid()
        return scores


class Layers(nn.Module):
    """LAION's H/14 safety head, and the aesthetic predictor's second version."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x)
        return scores


def h14_safety(dim: int) -> nn.Module:
    sizes = [dim, 1024, 2048, 1024, 256, 128]
    hidden = [
        part
        for takes, gives in itertools.pairwise(sizes)
        for part in (nn.Linear(takes, gives), nn.ReLU(), nn.Dropout(0.2))
    ]
    return Layers(*hidden, nn.Linear(128, 16), nn.Linear(16, 1))


def aesthetic_v2(dim: int) -> nn.Module:
    return Layers(
        *(nn.Linear(dim, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
    )


def aesthetic_v1(dim: int) -> nn.Module:
    return nn.Linear(dim, 1)


HEADS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "L/14 safety": ("clip_safety", L14Safety),
    "H/14 safety": ("clip_safety", h14_safety),
    "aesthetic v1": ("aesthetic", aesthetic_v1),
    "aesthetic v2": ("aesthetic", aesthetic_v2),
}
COLUMNS = {"clip_safety": "punsafe", "aesthetic": "aesthetic_score"}


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    """Embedded; the second shard has a picture that can't be decoded."""
    root = str(tmp_path_factory.mktemp("heads") / "corpus")
    make_corpus(root, num_samples=6)
    broken = f"00001{BROKEN:04d}"
    change_samples(root, lambda one: replace(one, image=b"broken") if one.key == broken else one)
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    return root


def write_head(path: Path, kind: str, dim: int = DIM) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = HEADS[kind][1](dim).eval()
    if path.suffix == ".safetensors":
        save_file(head.state_dict(), path)
    else:
        torch.save(head.state_dict(), path)
    return head


def run(root: str, signal: str, path: Path | str) -> Summary:
    option = f"{signal.replace('_', '-')}-head"
    config = score.Config(
        root=root, signals=(signal,), options={option: str(path)}, workers=HERE, overwrite=True
    )
    return score.run(config)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_says_what_its_module_says(
    corpus: str, tiny_encoder: str, tmp_path: Path, kind: str, suffix: str
) -> None:
    signal, column = HEADS[kind][0], COLUMNS[HEADS[kind][0]]
    path = tmp_path / f"head{suffix}"
    module = write_head(path, kind)
    summary = run(corpus, signal, path)
    folder = Path(embeddings_url(corpus, tiny_encoder)) / "img_emb"
    rows = np.concatenate([np.load(folder / f"img_emb_{i}.npy") for i in range(2)])
    unit = nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    expected = module(unit).detach().numpy()[:, 0]
    scores = read_columns(corpus, signal)[column].to_pylist()
    assert scores.pop(6 + BROKEN) is None
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) > 6
    assert summary.counts == {signal: 12, f"{signal} with nulls": 1}


def test_the_column_names_head_and_encoder_by_their_digests(
    corpus: str, tiny_encoder: str, tmp_path: Path
) -> None:
    path = tmp_path / "head.pth"
    write_head(path, "aesthetic v1")
    run(corpus, "aesthetic", path)
    field = pq.read_schema(f"{corpus}/columns/aesthetic/00000.parquet").field("aesthetic_score")
    models = json.loads(field.metadata[b"carrara.models"])
    weights = Path(tiny_encoder) / "open_clip_model.safetensors"
    assert models == {
        "head.pth": hashlib.sha256(path.read_bytes()).hexdigest(),
        tiny_encoder: hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def test_a_head_is_found_from_where_the_command_was_given(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head(tmp_path / "head.pth", "aesthetic v1")
    monkeypatch.chdir(tmp_path)
    assert run(corpus, "aesthetic", "head.pth").counts["aesthetic"] == 12


def test_very_sure_heads_stay_within_0_and_1(corpus: str, tmp_path: Path) -> None:
    module = write_head(tmp_path / "head.pth", "L/14 safety")
    state = module.state_dict() | {"linear_4.bias": torch.tensor([-1e4])}
    torch.save(state, tmp_path / "head.pth")
    run(corpus, "clip_safety", tmp_path / "head.pth")
    assert read_columns(corpus, "clip_safety")["punsafe"][0].as_py() == 0


def test_no_head_and_none_there_are_one_line(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--options\.clip-safety-head PATH"):
        score.run(score.Config(root=corpus, signals=("clip_safety",), workers=HERE))
    with pytest.raises(InputError, match="no such file"):
        run(corpus, "aesthetic", tmp_path / "nothing.pth")


def test_a_head_for_another_encoder_is_refused(corpus: str, tmp_path: Path) -> None:
    write_head(tmp_path / "head.pth", "aesthetic v2", dim=768)
    with pytest.raises(ConfigError, match=r"of 768 numbers, those by .* have 32"):
        run(corpus, "aesthetic", tmp_path / "head.pth")


def test_the_other_signal_s_head_is_refused(corpus: str, tmp_path: Path) -> None:
    write_head(tmp_path / "head.pth", "H/14 safety")
    with pytest.raises(InputError, match=r"has the tensors layers.0.bias \[1024\]"):
        run(corpus, "aesthetic", tmp_path / "head.pth")


class Evil:
    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self._place),)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_state_dict_is_refused_unrun(corpus: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"head{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a state dict"):
        run(corpus, "aesthetic", path)
    torch.save({"weight": Evil(tmp_path / "made")}, path)
    with pytest.raises(InputError, match="not a state dict"):
        run(corpus, "aesthetic", path)
    assert not (tmp_path / "made").exists()
    torch.save(torch.zeros(3), path)
    with pytest.raises(InputError, match="not a state dict"):
        run(corpus, "aesthetic", path)
