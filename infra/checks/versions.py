"""Python and packages: are they those that carrara asks for, and those that were tested?

Reads   what is installed here, carrara's own requirements, and constraints.txt where a checkout
        has it
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.checks.finding import Finding, Subject, broken, ok, warning

TOLD_OF = ("ray", "torch", "open_clip_torch", "pyarrow", "faiss-cpu", "s3fs", "numpy")
"""Versions worth seeing; the others are compared in silence."""
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
NUM_NAMED = 5


def check(_subject: Subject) -> Iterator[Finding]:
    yield _python()
    try:
        requirements = importlib.metadata.requires("carrara") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []  # a job runs from its working directory, uninstalled
    yield _packages(requirements)
    if CONSTRAINTS.exists():
        yield _tested(CONSTRAINTS.read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """What has to be alike on all machines of a cluster."""
    found = {"python": platform.python_version()}
    for name in ("ray", "torch", "pyarrow", "numpy", "open_clip_torch"):
        if (version := _installed(name)) is not None:
            found[name] = version
    return found


def apart(theirs: Mapping[str, Mapping[str, str]], mine: Mapping[str, str], me: str) -> list[str]:
    """What is not alike on the machines that told their versions, each held against `mine`."""
    return [
        f"{node} has {_told(name, there)}, {me} has {_told(name, mine)}"
        for node, there in theirs.items()
        if there
        for name in [*there, *(name for name in mine if name not in there)]
        if there.get(name) != mine.get(name)
    ]


def _told(name: str, versions: Mapping[str, str]) -> str:
    return f"{name} {versions[name]}" if name in versions else f"no {name}"


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    # As pyproject.toml's requires-python: Ray and torch have no wheels beyond.
    if (3, 11) <= sys.version_info < (3, 14):
        return ok("python", found)
    return broken("python", found, "make an environment with Python 3.11, 3.12 or 3.13")


def _packages(requirements: list[str]) -> Finding:
    from packaging.requirements import Requirement

    faults = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        if version is None:
            faults.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    if faults:
        return broken(
            "packages", _few(faults), "pip install -c constraints.txt carrara (or `make install`)"
        )
    told = [f"{name} {version}" for name in TOLD_OF if (version := _installed(name))]
    return ok("packages", ", ".join(told))


def _tested(constraints: str) -> Finding:
    from packaging.requirements import Requirement
    from packaging.version import Version

    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    apart, num_alike = [], 0
    for pin in (Requirement(line) for line in lines if line):
        version = _installed(pin.name)
        if version is None or (pin.marker and not pin.marker.evaluate()):
            continue
        # torch 2.15.0+cpu is torch 2.15.0, built for this machine.
        if pin.specifier.contains(Version(version).public):
            num_alike += 1
        else:
            apart.append(f"{pin.name} is {version}, tested {pin.specifier}")
    if apart:
        return warning(
            "pinned versions",
            f"{num_alike} as tested, {len(apart)} not: {_few(apart)}",
            "should anything behave oddly: pip install -c constraints.txt carrara",
        )
    return ok("pinned versions", f"all {num_alike} that are installed are those that were tested")


def _few(faults: list[str]) -> str:
    more = f" and {len(faults) - NUM_NAMED} more" if len(faults) > NUM_NAMED else ""
    return "; ".join(faults[:NUM_NAMED]) + more


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
