"""Data is never code, and what is installed is what was locked."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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
