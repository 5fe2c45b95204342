"""The documentation is true where a machine can tell: its commands exist, its links lead somewhere,
its site stands alone."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import Parameter

import carrara
from infra.config import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_ALL = {"--config", "--json", "--log", "--metrics", "--help"}


def flags(config: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from flags(kind, f"{prefix}{name}.")
            continue
        flag = f"{prefix}{name}".replace("_", "-")
        yield from (f"--{flag}", f"--{prefix}no-{name}".replace("_", "-"))
        for mark in field.metadata:
            if isinstance(mark, Parameter):
                yield from mark.name or ()


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `carrara STAGE ...` in a block of code, its stage first."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|\t)?\$? *(\S.*)$", text, re.MULTILINE):
        for command in line.split(" && "):
            found = re.match(r"(?:\S*bin/)?(?:carrara|infra/submit\.sh) ([a-z-]+) (.*)", command)
            if found and found[1] in carrara.STAGES:
                yield [found[1], *shlex.split(found[2].replace("`", ""), comments=True)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    for stage, *words in commands(page):
        known = set(flags(importlib.import_module(carrara.STAGES[stage].module).Config)) | OF_ALL
        given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        given -= {flag for flag in given if flag.startswith("--options.")}  # each signal's own
        assert given <= known, f"{page.name}: carrara {stage}: {given - known}"


def test_a_command_for_a_cluster_says_how_many_workers() -> None:
    """One that starts with none has nothing that their number could be taken from."""
    found = []
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for stage, words in re.findall(r"infra/submit\.sh ([a-z-]+) (.*)", text):
            fields = importlib.import_module(carrara.STAGES[stage].module).Config.model_fields
            if "workers" in fields and stage != "doctor":  # which looks at the nodes there are
                found.append((page.name, stage, "--workers.num-workers" in words))
    assert len(found) > 6
    assert [command for command in found if not command[2]] == []


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--strict"]
    done = subprocess.run(
        [*build, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    for stage in carrara.STAGES:
        assert f"carrara {stage}</h3>" in re.sub(r"<a .*?</a>", "", reference), stage
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        asked = re.findall(
            r"""<(?:script|img|link)[^>]+(?:src|href)=["']?(https?://[^"' >]+)""", html
        )
        assert not asked, f"{page.relative_to(tmp_path)}: {asked}"
