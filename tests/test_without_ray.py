"""Where one process serves no cluster is started, and Ray is not even imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CARRY_OUT = """
import sys, carrara
root, packed, run = sys.argv[1:]
encoder, quick = ["--encoder", "Carrara-S/emoji_clipart"], ["--num-steps", "2"]
commands = [
    ["embed", root, *encoder, "--local"],
    ["index", root, *encoder],
    ["score", root, "--signals", "caption", "--local"],
    ["select", root, "--name", "all", "--where", "true"],
    ["pack", root, packed, "--selection", "all"],
    ["query", root, "a cat"],
    ["why", root, "000000000"],
    ["verify", root],
    ["runs", root],
    ["plan", "--pairs", "1e6"],
    ["train", root, run, *encoder, "--config", "tests/tiny.toml", "--workers.local"],
    ["sample", run, "a cat", "--output", f"{run}/cat.png", *quick],
    ["sample", run, "a cat", "--layout", "files", "--output", f"{run}/cats", "--local", *quick],
    ["evaluate", run, root, "--num-images", "8", "--num-bootstraps", "20", "--local", *quick],
    ["export", run, f"{run}-exported"],
]
for argv in commands:
    assert carrara.run_command(argv) == 0, argv
    assert "ray" not in sys.modules, argv
"""


def test_one_process_serves_without_ray(small_corpus: str, tmp_path: Path) -> None:
    places = [small_corpus, str(tmp_path / "packed"), str(tmp_path / "run")]
    argv = [sys.executable, "-c", CARRY_OUT, *places]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
