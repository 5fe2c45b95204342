"""Programs that are compared with, each in a Python environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

CLIP_RETRIEVAL = ("clip-retrieval==2.45.0", "setuptools<80")
"""Its CLIP package asks for pkg_resources, which later setuptools no longer bring."""


def peer_python(folder: Path, *requirements: str) -> Path:
    """The interpreter of an environment that holds `requirements`; made on the first call."""
    python = folder / "bin" / "python"
    done = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if not done.exists() or done.read_text() != wanted:
        print(f"setting up {folder} with {', '.join(requirements)}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-qq", *requirements]
        subprocess.run(install, check=True)
        done.write_text(wanted)
    return python
