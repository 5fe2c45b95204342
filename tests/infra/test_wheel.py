"""The wheel has all that its code reads: pages, models, templates, policies, configurations."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Of the files in a wheel built now."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(
    "folder",
    [
        *("retrieval/web", "retrieval/templates", "pipeline/pages/templates"),
        *("retrieval/models/Carrara-S", "retrieval/models/Carrara-S-multilingual"),
        *("pipeline/selecting/policies", "infra/configs"),
    ],
)
def test_a_wheel_has_the_files_that_are_read(names: set[str], folder: str) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files
    assert files <= names
