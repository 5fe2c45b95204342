"""Train the small CLIP with open_clip's own trainer on shards that `carrara download` made.

    PYTHONPATH=trainer-packages python -m examples.small_clip.train WORK

Reads   WORK/{train,heldout}/manifest.json and shards/*.tar; models/Carrara-S.json beside this file
Writes  WORK/logs/Carrara-S/   out.log with the held-out recall every few epochs, checkpoints/
Run again, it resumes from the newest checkpoint.

trainer-packages holds webdataset 0.2.86: with 0.2.100 and later the trainer's loader dies with
KeyError: 'fname' (webdataset yields an empty dictionary at the end of each shard).
"""

import argparse
from pathlib import Path

import open_clip
from open_clip_train.main import main as train_clip

from pipeline.corpus import read_manifest

MODELS = Path(__file__).parent / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="Carrara-S", help="a file in models/, without .json")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    open_clip.add_model_config(MODELS)
    flags = {
        "model": arguments.model,
        "dataset-type": "webdataset",
        "epochs": arguments.epochs,
        "batch-size": arguments.batch_size,
        "lr": arguments.learning_rate,
        "beta2": 0.98,
        "eps": 1e-6,
        "wd": 0.2,
        "warmup": 100,
        "device": arguments.device,
        "precision": "fp32",
        "workers": 1,
        "seed": 0,
        "logs": arguments.work / "logs",
        "name": arguments.model,
        "save-frequency": 2,
        "val-frequency": 2,
        "log-every-n-steps": 20,
        "resume": "latest",
        "aug-cfg": "scale=(0.6,1.0)",  # crops only: what an emoji is can hang on its colour
    }
    for prefix, name in (("train", "train"), ("val", "heldout")):
        root = arguments.work / name
        manifest = read_manifest(str(root))
        flags[f"{prefix}-data"] = "::".join(
            str(root / "shards" / f"{shard.name}.tar") for shard in manifest.shards
        )
        flags[f"{prefix}-num-samples"] = manifest.num_samples
    train_clip([part for name, value in flags.items() for part in (f"--{name}", str(value))])


if __name__ == "__main__":
    main()
