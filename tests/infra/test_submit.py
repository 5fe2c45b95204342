"""What `infra/submit.sh` sends to a cluster: all that a job reads, and nothing that merely lies
beside it. Packed by Ray itself."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("infra", "pipeline", "retrieval", "training", "examples")
READ = (
    *("retrieval/web", "retrieval/templates", "retrieval/models", "pipeline/pages/templates"),
    *("pipeline/selecting/policies", "infra/configs"),
)
"""Folders of which jobs read files that are no code."""

PLANTED = (
    *("keys.txt", "server.pem", "credentials.json", "id_rsa", ".env", ".env.local", ".netrc"),
    *(".aws/credentials", "infra/deploy/compose/.env", "infra/client.pem", "infra/prod.env"),
    *("training/keys.txt", "pairs.parquet", "model.safetensors", "image.index", "vectors.npy"),
    *("site/index.html", "site/search.js", "demo/corpus/shards/00000.tar", "run/config.toml"),
    *("corpus/manifest.json", "pipeline/rows.parquet", "tests/conftest.py", ".git/config"),
)
OF_THE_USER = ("my_signal.py", "my_settings.toml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, with secrets and data in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FLOORS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("carrara.py", "constraints.txt", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in (*PLANTED, *OF_THE_USER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("planted")
    return folder


@pytest.fixture(scope="module")
def sent(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    from ray._private.runtime_env.packaging import create_package

    script = (checkout / "infra" / "submit.sh").read_text()
    (excludes,) = re.findall(r"^excludes='(\[.*?\])'$", script, re.MULTILINE | re.DOTALL)
    package = tmp_path_factory.mktemp("package") / "sent.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=json.loads(excludes))
    with zipfile.ZipFile(package) as archive:
        return set(archive.namelist())


def test_what_lies_beside_the_code_stays_here(sent: set[str]) -> None:
    assert sent.isdisjoint(PLANTED)
    assert not [name for name in sent if name.startswith(("site/", "demo/", "run/", "corpus/"))]


def test_all_that_jobs_read_is_sent(checkout: Path, sent: set[str]) -> None:
    code = [path for floor in FLOORS for path in (checkout / floor).rglob("*.py")]
    read = [path for folder in READ for path in (checkout / folder).rglob("*") if path.is_file()]
    emoji = [checkout / "examples" / "emoji" / name for name in ("pictures.zip", "captions.csv")]
    needed = {path.relative_to(checkout).as_posix() for path in (*code, *read, *emoji)}
    assert len(needed) > 300
    assert needed | {"carrara.py", "constraints.txt"} <= sent


def test_programs_and_settings_of_the_user_s_own_are_sent(sent: set[str]) -> None:
    assert sent.issuperset(OF_THE_USER)
