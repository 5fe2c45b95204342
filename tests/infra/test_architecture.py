"""The tower of floors: who may import whom, and that the top-level names are ours."""

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "infra": {"infra"},
    "pipeline": {"pipeline", "infra"},
    "retrieval": {"retrieval", "pipeline", "infra"},
    "training": {
        "training",
        "retrieval.copies",
        "retrieval.embedding.embeddings",
        "retrieval.encoding",
        "retrieval.live.images",
        "retrieval.search",
        "pipeline.corpus",
        "pipeline.pages",
        "pipeline.picture_hash",
        "pipeline.sample",
        "pipeline.selecting.splits",
        "pipeline.takedown",
        "pipeline.tar",
        "infra",
    }
    # The plan's calibration runs the stages' own steps; its memory is that of the kinds of index.
    | {"pipeline.fetching.fetch", "pipeline.fetching.fetch_settings", "pipeline.pixels"}
    | {"retrieval.indexing.kinds"},
    "carrara.py": {"infra", "pipeline.downloading.img2dataset_options"},
}
RETRIEVAL_MAY_IMPORT_OF_PIPELINE = {
    "pipeline.corpus",
    "pipeline.dedup.grouping",
    "pipeline.pages.contact_sheet",
    "pipeline.fetching.fetch",
    "pipeline.fetching.fetch_settings",
    "pipeline.picture_hash",
    "pipeline.pixels",
    "pipeline.sample",
    "pipeline.score",
    "pipeline.select",
    "pipeline.selecting.policy",
    "pipeline.selecting.samples_sql",
    "pipeline.takedown.takedown",
    "pipeline.takedown.tombstones",
    "pipeline.tar",
}
OURS = ("infra", "pipeline", "retrieval", "training", "examples", "carrara")


def imported_names(file: Path) -> set[str]:
    """Dotted names of our modules that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_leans_only_on_those_below(floor: str) -> None:
    place = ROOT / floor
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        wrong = {name for name in imported_names(file) if not within(name, MAY_IMPORT[floor])}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_retrieval_meets_the_pipeline_only_at_the_contract() -> None:
    for file in sorted((ROOT / "retrieval").rglob("*.py")):
        names = {name for name in imported_names(file) if name.startswith("pipeline")}
        wrong = {name for name in names if not within(name, RETRIEVAL_MAY_IMPORT_OF_PIPELINE)}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_no_other_package_installs_our_top_level_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in OURS:
        assert set(owners.get(name, ["carrara"])) == {"carrara"}, (name, owners[name])


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
