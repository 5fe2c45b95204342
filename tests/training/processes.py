"""One of several processes of torch.distributed, as torchrun would start them:

    python processes.py RANK PLAN.json

PLAN: a list of {rendezvous, num_workers, record}; a process whose rank is beyond a phase's workers
sits that one out. What a phase raised of ours is written to PLAN.json.RANK.PHASE.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from infra.errors import CarraraError
from training import loop
from training.record import RunRecord


def main(rank: int, plan: Path) -> None:
    torch.set_num_threads(1)
    for number, phase in enumerate(json.loads(plan.read_text())):
        if rank >= phase["num_workers"]:
            continue
        dist.init_process_group(
            "gloo",
            init_method=phase["rendezvous"],
            rank=rank,
            world_size=phase["num_workers"],
        )
        try:
            loop.train(RunRecord.model_validate_json(phase["records"][rank]))
        except CarraraError as error:
            Path(f"{plan}.{rank}.{number}").write_text(f"{type(error).__name__}: {error}")
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
