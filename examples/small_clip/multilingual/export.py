"""Turn a checkpoint of the tower into the folder that retrieval.encoding.towers loads.

    python -m examples.small_clip.multilingual.export WORK/multilingual FOLDER

Writes  FOLDER/model.safetensors (fp16), tower.json, tokenizer.json
"""

import argparse
import shutil
from pathlib import Path

import torch

from examples.small_clip.export import write_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.trained / "checkpoint.pt", weights_only=True)
    weights = arguments.folder / "model.safetensors"
    write_weights(weights, state["model"])
    for name in ("tower.json", "tokenizer.json"):
        shutil.copyfile(arguments.trained / name, arguments.folder / name)
    print(f"{weights}: {weights.stat().st_size:,} bytes, {state['num_epochs']} epochs")


if __name__ == "__main__":
    main()
