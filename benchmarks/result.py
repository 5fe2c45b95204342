"""A result to show: `unet` and `uvit` trained for some minutes each, and what they draw.

    python -m benchmarks.result WORK                      8 minutes each at 64x64, on a GPU
    python -m benchmarks.result WORK --minutes 60         on a CPU: 30 each at 32x32
    python -m benchmarks.result WORK --minutes 2          a try

Builds the corpus of emoji and clip art (--emoji-only: without what must be fetched), finds how
quick each network is, trains both, draws captions of the corpus and captions that it does not have,
and scores both against held-out pictures. Every step is a command of Carrara's, printed as it runs;
the same command again goes on where it stopped. Nothing is picked: the pictures are those of the
first seeds.

Writes  WORK/train, heldout            the corpora
        WORK/unet, uvit                the runs
        WORK/<network>-seen.png  -unseen.png  -scores/ (scores.json, trade-off.svg, nearest.png)
        WORK/RESULT.md                 losses, speed and scores side by side
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w
import torch

from benchmarks.machine import processor
from benchmarks.result_corpus import build
from pipeline.corpus import read_manifest
from training.log import read_metrics
from training.watching.looks import read_held_out

HERE = Path(__file__).parents[1]
NETWORKS = ("unet", "uvit")

SEEN = ("grinning face", "red heart", "flag of Japan", "cat face", "red apple", "sunflower")
"""Captions of the corpus, as a training picture has them."""
UNSEEN = (
    *("a cat in the snow", "a blue apple", "a red car in front of a house"),
    *("a sad sun", "a green heart with a face", "a dog on a flag"),
)
"""Captions that no picture of it has; chosen before anything was drawn."""

SHARED: dict[str, Any] = {
    "encoder": "Carrara-S/emoji_clipart",  # ships with the program
    "prediction": "v",
    "decay_share": 0.3,
    "log_every": 20,
    "workers": {"local": True},
}
ON_GPU = SHARED | {
    "image_size": 64,
    "size": "S",
    "weighting": "min-snr",
    "batch_size": 512,
    "learning_rate": 3e-4,
    "warmup_steps": 300,
    "ema_decay": 0.999,
    "checkpoint_every": 500,
}
ON_CPU = SHARED | {
    "image_size": 32,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "ema_decay": 0.995,
    "checkpoint_every": 100,
    "unet": {
        "channels": 32,
        "channel_mults": [1, 2, 4],
        "num_res_blocks": 1,
        "attention_resolutions": [8],
        "patch_size": 2,
        "dropout": 0.0,
    },
    "uvit": {"patch_size": 2, "channels": [64], "num_res_blocks": 1, "width": 192, "num_layers": 4},
}
"""Networks of about equal cost a picture, small enough for some thousand steps."""

TRIAL_STEPS = 60
"""The last line of its log tells the speed, warm."""
NUM_LOOKS = 4
"""At the loss on held-out pictures."""
SHOWN = (
    *("step", "loss", "held_out_loss", "images_per_s", "mfu_percent", "stall_percent"),
    *("memory_gb", "bound_by"),
)
"""Of the log's last line."""
SAMPLER = ["--sampler", "dpm++", "--num-steps", "25"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--minutes",
        type=float,
        help="of training, for both networks together; 16 on a GPU, 60 on a CPU",
    )
    parser.add_argument("--threads", type=int, default=0, help="torch's on a CPU; 0: all cores")
    parser.add_argument("--size", help="S, B, L or XL instead of the networks set here")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--num-images", type=int, default=300, help="scored, a guidance scale")
    parser.add_argument("--emoji-only", action="store_true")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    minutes = (arguments.minutes or (16 if on_gpu else 60)) / len(NETWORKS)
    settings = dict(ON_GPU if on_gpu else ON_CPU)
    settings |= {"size": arguments.size} if arguments.size else {}
    settings |= {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    settings |= {"threads_per_worker": arguments.threads}
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    train, heldout = build(work, emoji_only=arguments.emoji_only)
    results = {
        network: result_of(network, work, train, heldout, settings, minutes, arguments.num_images)
        for network in NETWORKS
    }
    text = report(results, work, minutes)
    (work / "RESULT.md").write_text(text, "utf-8")
    print(text)


def result_of(
    network: str,
    work: Path,
    train: Path,
    heldout: Path,
    settings: dict[str, Any],
    minutes: float,
    num_images: int,
) -> dict[str, Any]:
    """One network from start to scores."""
    settings = settings | {"network": network}
    plan = work / f"{network}.toml"
    if not plan.exists():
        steps = num_steps(network, work, train, settings, minutes)
        looks = {"held_out_every": steps // NUM_LOOKS, "grid_every": 0}
        table = settings | {"num_steps": steps, "watch": looks}
        plan.write_text(tomli_w.dumps({"train": table}), "utf-8")
    run, threads = work / network, settings["threads_per_worker"]
    carrara(threads, "train", str(train), str(run), "--config", str(plan))
    for name, captions in (("seen", SEEN), ("unseen", UNSEEN)):
        files = ["--output", str(work / f"{network}-{name}.png")]
        files += ["--animation", str(work / f"{network}-{name}.webp")]
        carrara(threads, "sample", str(run), *captions, *SAMPLER, *files)
    scores = work / f"{network}-scores"
    against = ["--training", str(train), "--num-images", str(num_images), "--output", str(scores)]
    sweep = ["--guidance-scale", "1", "2", "3", "5", "--workers.local"]
    carrara(threads, "evaluate", str(run), str(heldout), *against, *sweep, *SAMPLER)
    return {
        "held_out_loss": read_held_out(str(run))[-1]["loss"],
        **read_metrics(str(run))[-1],
        "scores": json.loads((scores / "scores.json").read_text("utf-8")),
    }


def num_steps(
    network: str, work: Path, train: Path, settings: dict[str, Any], minutes: float
) -> int:
    """How many fill the minutes, by the speed of a trial; the last is looked at, too."""
    trial = work / f"trial-{network}"
    plan = work / f"trial-{network}.toml"
    quick = {"num_steps": TRIAL_STEPS, "watch": {"held_out_every": 0, "grid_every": 0}}
    plan.write_text(tomli_w.dumps({"train": settings | quick}), "utf-8")
    threads = settings["threads_per_worker"]
    carrara(threads, "train", str(train), str(trial), "--config", str(plan), "--overwrite")
    images_per_s = float(read_metrics(str(trial))[-1]["images_per_s"])
    batch_size = int(settings["batch_size"])
    steps = round(60 * minutes * images_per_s / batch_size)
    return NUM_LOOKS * max(TRIAL_STEPS // NUM_LOOKS, steps // NUM_LOOKS)


def carrara(threads: int, *line: str) -> None:
    print(f"\n$ carrara {' '.join(line)}", file=sys.stderr, flush=True)
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    command = [sys.executable, str(HERE / "carrara.py"), *line]
    subprocess.run(command, cwd=HERE, env=os.environ | limit, check=True)


def report(results: dict[str, dict[str, Any]], work: Path, minutes: float) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    lines = [
        f"# {minutes:g} minutes a network on {device} ({platform.machine()}, torch "
        f"{torch.__version__})",
        "",
        f"Trained on {read_manifest(str(work / 'train')).num_samples:,} pictures, "
        f"scored against {read_manifest(str(work / 'heldout')).num_samples:,} held out.",
        "",
        "| | " + " | ".join(results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name in SHOWN:
        cells = [str(one.get(name, "")) for one in results.values()]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines += [
        "",
        *_score_table(results),
        "",
        f"Better by Frechet distance: {_better(results)}.",
        "",
    ]
    return "\n".join(lines)


def _score_table(results: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        ("" if row["guidance_scale"] is None else network, row["pictures"], row["scores"])
        for network, one in results.items()
        for row in one["scores"]["rows"]
    ]
    rows = list(
        {(network, pictures): (network, pictures, s) for network, pictures, s in rows}.values()
    )
    names = list(rows[0][2])
    lines = ["| network | pictures | " + " | ".join(names) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(names))
    for network, pictures, scores in rows:
        cells = [_cell(scores.get(name)) for name in names]
        lines.append(f"| {network} | {pictures} | " + " | ".join(cells) + " |")
    return lines


def _cell(score: dict[str, float] | None) -> str:
    if score is None:
        return ""
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _better(results: dict[str, dict[str, Any]]) -> str:
    best = {
        network: min(
            row["scores"]["frechet"]["value"]
            for row in one["scores"]["rows"]
            if row["guidance_scale"] is not None
        )
        for network, one in results.items()
    }
    (winner, *_) = sorted(best, key=lambda network: best[network])
    told = ", ".join(f"{network} {value:.3f}" for network, value in best.items())
    return f"{winner} ({told}, each at its best guidance)"


if __name__ == "__main__":
    main()
