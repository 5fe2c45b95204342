"""Which objective trains best: schedules, predictions and weightings, one after the other on the
same pictures in the same order with the same noise.

    python -m benchmarks.objective                          all, 1500 steps: an hour on 2 cores
    python -m benchmarks.objective --channels 16 --num-steps 600 --num-images 256       a try
    python -m benchmarks.objective --only cosine/v/min-snr linear/eps/uniform

The small U-Net of the demo on the emoji that ship, at 32 pixels, without captions. Held-out loss is
L_simple on a tenth of the pictures, comparable under one schedule alone; the distances are between
what the averaged weights draw (DPM-Solver++, 25 steps) and the held-out tenth with what was trained
on: the demo's encoder's KID, and the gap of the mean brightness over pictures, in standard errors.
"""

import argparse
import io
import math
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.machine import processor
from retrieval.encoding.encoder import load_encoder
from training.config import Config, UNetConfig
from training.diffusion import Network, make_objective
from training.ema import EMA
from training.evaluating.kernels import mmd, polynomial
from training.loop import learning_rate
from training.network import make_network
from training.samplers import dpm_solver

PICTURES = Path(__file__).parents[1] / "examples" / "emoji" / "pictures.zip"
SIDE, TEXT_WIDTH = 32, 8
UNET = UNetConfig(
    channel_mults=(1, 2, 4),
    num_res_blocks=1,
    attention_resolutions=(8,),
    patch_size=2,
    dropout=0.0,
)
VARIANTS = (
    "linear/eps/uniform",  # the paper's
    "cosine/eps/uniform",
    "cosine/v/uniform",
    "cosine/v/v",
    "cosine/v/min-snr",
    "cosine/x_0/min-snr",
    "cosine-zero/v/v",
    "cosine-zero/v/min-snr",
    "linear/v/min-snr",
)


@dataclass(frozen=True)
class Result:
    loss: float
    kid: float
    brightness: float
    steps_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", default=VARIANTS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = read_pictures().to(device)
    held_out, training = pictures[::10], pictures[np.arange(len(pictures)) % 10 > 0]
    print(f"{processor()}, {device}; {len(training)} pictures to train on, {arguments}")
    print(f"{'':24}{'held-out loss':>14}{'KID x 1000':>12}{'brightness':>12}{'steps/s':>9}")
    for variant in arguments.only:
        result = train(variant, training, held_out, arguments)
        print(
            f"{variant:24}{result.loss:14.4f}{1000 * result.kid:12.2f}{result.brightness:+12.1f}"
            f"{result.steps_per_s:9.1f}",
            flush=True,
        )


def train(variant: str, training: Tensor, held_out: Tensor, arguments: Any) -> Result:
    config = config_of(variant, arguments)
    device = training.device
    objective = make_objective(config, device)
    torch.manual_seed(0)
    model = make_network(config, TEXT_WIDTH).to(device)
    ema = EMA(model, config.ema_decay)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.adam_betas, weight_decay=config.weight_decay
    )
    generator = torch.Generator().manual_seed(1)
    started = time.perf_counter()
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        rows = torch.randint(len(training), (config.batch_size,), generator=generator)
        t, eps = draws(config.batch_size, generator, device)
        losses = objective.per_sample_loss(textless(model), training[rows], t, eps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.weighted.mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        ema.update(model)
    steps_per_s = config.num_steps / (time.perf_counter() - started)
    model.load_state_dict(ema.weights)
    model.eval()
    network = textless(model)
    with torch.no_grad():
        # Every picture at 16 timesteps.
        x_0 = held_out.repeat(16, 1, 1, 1)
        t, eps = draws(len(x_0), torch.Generator().manual_seed(2), device)
        parts = zip(*(torch.split(whole, 256) for whole in (x_0, t, eps)), strict=True)
        loss = torch.cat([objective.per_sample_loss(network, *part).simple for part in parts])
    generator = torch.Generator().manual_seed(3)
    x_T = torch.randn(arguments.num_images, 3, SIDE, SIDE, generator=generator).to(device)
    drawn = torch.cat(
        [
            dpm_solver(objective.denoise(network), part, objective.schedule, 25, generator)
            for part in torch.split(x_T, 128)
        ]
    )
    kid, brightness = distances(drawn, torch.cat([training, held_out]))
    return Result(loss.mean().item(), kid, brightness, steps_per_s)


def config_of(variant: str, arguments: Any) -> Config:
    schedule, prediction, weighting = variant.split("/")
    settings: dict[str, Any] = {"prediction": prediction, "weighting": weighting}
    return Config(
        root="none",
        run="none",
        schedule=schedule.removesuffix("-zero"),
        zero_terminal_snr=schedule.endswith("-zero"),
        image_size=SIDE,
        unet=UNET.model_copy(update={"channels": arguments.channels}),
        num_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_steps=50,
        ema_decay=0.995,
        **settings,
    )


def textless(model: torch.nn.Module) -> Network:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        tokens = x_t.new_zeros(len(x_t), 1, TEXT_WIDTH)
        output: Tensor = model(x_t, t, tokens, torch.zeros_like(tokens[..., 0], dtype=torch.bool))
        return output

    return network


def draws(num: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    t = torch.randint(1000, (num,), generator=generator)
    return t.to(device), torch.randn(num, 3, SIDE, SIDE, generator=generator).to(device)


def distances(drawn: Tensor, real: Tensor) -> tuple[float, float]:
    encoder = load_encoder("Carrara-S/emoji_clipart", str(drawn.device))
    fake, true = (
        torch.from_numpy(encoder.encode_images([Image.fromarray(one) for one in as_bytes(part)]))
        for part in (drawn, real)
    )
    kid = mmd(fake, true, polynomial(1 / fake.shape[1]))
    means = [part.clamp(-1, 1).mean((1, 2, 3)) for part in (drawn, real)]
    error = math.sqrt(sum((part.var() / len(part)).item() for part in means))
    return kid, (means[0].mean() - means[1].mean()).item() / error


def as_bytes(pictures: Tensor) -> np.ndarray:
    """[n, 3, H, W] in [-1, 1] -> [n, H, W, 3] uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def read_pictures() -> Tensor:
    """The emoji on white, `[n, 3, SIDE, SIDE]` in [-1, 1]."""
    pictures = []
    with zipfile.ZipFile(PICTURES) as file:
        for name in sorted(file.namelist()):
            with Image.open(io.BytesIO(file.read(name))) as image:
                rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            whole = Image.alpha_composite(white, rgba).convert("RGB").resize((SIDE, SIDE))
            pictures.append(torch.from_numpy(np.array(whole)))
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
