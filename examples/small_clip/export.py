"""Turn a checkpoint of open_clip's trainer into a folder that open_clip loads by itself.

    python -m examples.small_clip.export WORK/logs/Carrara-S/checkpoints/epoch_16.pt FOLDER

Writes  FOLDER/open_clip_model.safetensors (fp16), FOLDER/open_clip_config.json
Load    open_clip.create_model_and_transforms("local-dir:FOLDER")
"""

import argparse
import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

MODELS = Path(__file__).parent / "models"
MAX_BYTES = 24_000_000
# Pictures are scaled to fit and padded white, as the shards' were by `--resize-mode border`.
PREPROCESSING = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "longest",
    "fill_color": 255,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="Carrara-S", help="a file in models/, without .json")
    arguments = parser.parse_args()
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    tensors = {name.removeprefix("module."): each for name, each in state["state_dict"].items()}
    weights = arguments.folder / "open_clip_model.safetensors"
    write_weights(weights, tensors)
    config = {
        "model_cfg": json.loads((MODELS / f"{arguments.model}.json").read_text("utf-8")),
        "preprocess_cfg": PREPROCESSING,
    }
    text = json.dumps(config, indent=2) + "\n"
    (arguments.folder / "open_clip_config.json").write_text(text, "utf-8")
    print(f"{weights}: {weights.stat().st_size:,} bytes, epoch {state['epoch']}")


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As float16; no more than ships."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in halves.items()}, path)
    path.chmod(0o644)  # safetensors writes it readable to its owner alone
    assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main()
