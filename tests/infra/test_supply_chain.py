"""Data is never code, and what is installed is what was locked."""

import ast
import re
import tomllib
from collections.abc import Iterator
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


def test_all_that_is_asked_for_is_locked_with_hashes_and_pinned_without() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+==\S+)( ;.*?)? \\\n((?: {4}--hash=.*\n)+)", lock, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S", lock, re.MULTILINE))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert pinned == [f"{name}{marker}" for name, marker, _ in entries]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    versions = dict(entry.split("==") for entry, _, _ in entries)
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name != "carrara":
            assert versions[name] in requirement.specifier, requirement
    assert "://" not in lock  # no address of an index


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
