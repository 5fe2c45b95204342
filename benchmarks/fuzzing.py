"""What the commands that make malformed input by the thousand have in common."""

import argparse


def num_and_seed(description: str) -> argparse.Namespace:
    """`num` of them, made from `seed`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()
