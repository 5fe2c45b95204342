"""torch.compile with its own backend, which writes C++ on a CPU and builds it."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.config import Config, UNetConfig
from training.network import compiled, make_network

TEXT_WIDTH, NUM_TOKENS = 8, 3
TINY = UNetConfig(
    channels=8, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=1
)


def what_is_missing() -> str | None:
    if shutil.which("g++") is None:
        return "no C++ compiler (g++) here"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no headers of Python here"
    return None


@pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
def test_network_built_by_the_compiler_computes_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = Config(root="corpus", run="run", image_size=8, unet=TINY, compile="yes")
    torch.manual_seed(0)
    network = make_network(config, TEXT_WIDTH).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    tokens = torch.randn(2, NUM_TOKENS, TEXT_WIDTH, generator=generator)
    given = (x_t, torch.tensor([3, 700]), tokens, torch.ones(2, NUM_TOKENS, dtype=torch.bool))

    def outcome(module: torch.nn.Module) -> list[Tensor]:
        """What it puts out, and all gradients of that."""
        network.zero_grad()
        output: Tensor = module(*given)
        torch.autograd.backward(output.square().mean())
        gradients = [parameter.grad for parameter in network.parameters()]
        return [output.detach(), *(one.clone() for one in gradients if one is not None)]

    torch._dynamo.reset()
    for ours, plain in zip(
        outcome(compiled(network, config, torch.device("cpu"))), outcome(network), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    assert list(tmp_path.rglob("*.so"))  # it was built
