"""Data is never code, and what is installed is what was locked."""

import ast
import json
import re
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FLOORS = ("infra", "pipeline", "retrieval", "training")
FILES = [ROOT / "carrara.py", *(file for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))]

NEVER = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "dill.load",
    "dill.loads",
}
NEVER |= {"marshal.load", "marshal.loads", "shelve.open", "yaml.load", "eval", "exec", "os.system"}
UNPACKS = {"extractall", "unpack_archive"}
ONLY_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def wrong_calls(code: str) -> Iterator[str]:
    """Those that run what they read, or write an archive's names to disk."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            setting, value = ONLY_WITH.get(name, ("", None))
            is_wrong = name in NEVER or name.rpartition(".")[2] in UNPACKS
            if is_wrong or (setting and given.get(setting) != str(value)):
                yield f"line {node.lineno}: {name}"


def locked(file: Path) -> dict[str, tuple[str, str, set[str]]]:
    """Version, marker and sha256 digests by name; every line is an entry's."""
    lock = file.read_text(encoding="utf-8")
    assert "://" not in lock  # no address of an index
    entries = re.findall(
        r"^(\S+)==(\S+)( ;.*)? \\\n((?: {4}--hash=sha256:.*\n)+)", lock, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^\S", lock, re.MULTILINE))
    return {
        name: (version, marker, set(re.findall(r"sha256:(\w{64})\b", hashes)))
        for name, version, marker, hashes in entries
    }


def test_all_that_is_asked_for_is_locked_with_hashes_and_pinned_without() -> None:
    entries = locked(ROOT / "requirements.lock")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert pinned == [
        f"{name}=={version}{marker}" for name, (version, marker, _) in entries.items()
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name != "carrara":
            assert entries[name][0] in requirement.specifier, requirement


def test_the_image_is_given_what_runs_by_the_same_hashes() -> None:
    entries = locked(ROOT / "requirements.lock")
    of_image = locked(ROOT / "infra" / "deploy" / "docker" / "requirements.lock")
    for name, (version, _, hashes) in of_image.items():
        assert (version, hashes) == (entries[name][0], entries[name][2]), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked += project["project"]["optional-dependencies"]["rayserve"]
    assert needed(asked) <= set(of_image)
    assert set(of_image).isdisjoint({"pytest", "mypy", "mkdocs", "playwright", "nudenet"})


def needed(asked: Iterable[str]) -> set[str]:
    """Names of what is asked for and of all that it asks for in turn, on this machine."""
    seen = set[tuple[str, str]]()
    waiting = [(Requirement(line), "") for line in asked]
    while waiting:
        requirement, by = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for found, extra in seen if found == name}:
            seen.add((name, extra))
            waiting += [(Requirement(line), extra) for line in requires(name) or ()]
    return {name for name, _ in seen}


def test_the_bill_of_materials_lists_what_is_locked(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    tool = Path(sysconfig.get_path("scripts")) / "cyclonedx-py"
    options = ["--pyproject", "pyproject.toml", "--output-file", str(bill), "requirements.lock"]
    subprocess.run([tool, "requirements", *options], cwd=ROOT, check=True, capture_output=True)
    told = json.loads(bill.read_text(encoding="utf-8"))
    assert told["metadata"]["component"]["name"] == "carrara"
    found = {
        component["name"]: (
            component["version"],
            {
                digest["content"]
                for source in component["externalReferences"]
                for digest in source.get("hashes", ())
            },
        )
        for component in told["components"]
    }
    entries = locked(ROOT / "requirements.lock").items()
    assert found == {name: (version, hashes) for name, (version, _, hashes) in entries}


def test_nothing_that_is_read_is_run_or_unpacked_to_disk() -> None:
    assert len(FILES) > 200
    for file in FILES:
        wrong = list(wrong_calls(file.read_text(encoding="utf-8")))
        assert not wrong, f"{file.relative_to(ROOT)}: {wrong}"


@pytest.mark.parametrize(
    "code",
    [
        *("pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)"),
        *("tarfile.open(f).extractall(folder)", "shutil.unpack_archive(f)", "eval(text)"),
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(wrong_calls(code))
