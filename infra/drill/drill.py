"""`carrara doctor --drill`: three Ray nodes are made, faults befall them, all of it is told.

Reads   this checkout, whose infra/submit.sh carries out the jobs
Writes  a folder of logs

Needs Linux's namespaces (root, or a kernel that lets users have their own), `ip`, `unshare`, and
SeaweedFS as the S3 server. Nothing outside of it is touched, and all of it ends with the command.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from infra.drill.faults import FAULTS
from infra.drill.jobs import JOBS
from infra.drill.object_store import find_weed
from infra.errors import ConfigError
from infra.progress import track
from infra.summary import Stopwatch, Summary

REPOSITORY = Path(__file__).parents[2]

Chains = list[list[tuple[str, str]]]
"""Of (job, fault); each begins with the list of URLs."""

FULL: Chains = [[(job, fault) for job in JOBS] for fault in FAULTS]
SMALL: Chains = [
    [
        ("download", "disk filled"),
        ("embed", "node cut off"),
        ("index", "head restarted"),
        ("train", "node killed"),
        ("sample", "node killed"),
    ]
]


def rehearse(*, small: bool, folder: str | None) -> Summary:
    """Every job with every fault; `small`: one fault a job."""
    _check_tools()
    chains = SMALL if small else FULL
    place = _make_folder(folder)
    with Stopwatch() as watch:
        rows = _carried_out(chains, place)
    struck = [row for row in rows if row["fault"] != "none"]
    bad = [f"{row['job']}, {row['fault']}" for row in rows if not row["same"]]
    num_expected = sum(map(len, chains))
    shortfall = ""
    if bad or len(struck) < num_expected:
        named = "; ".join(bad) or f"{len(struck)} of {num_expected} jobs were carried out"
        shortfall = f"doctor --drill: {named}: see the table, and the logs in {place}"
    elif folder is None:
        shutil.rmtree(place)
    return Summary(
        stage="doctor",
        num_in=num_expected,
        num_out=sum(bool(row["same"]) for row in struck),
        unit="faults",
        counts=dict(Counter(str(row["fault"]) for row in struck)),
        seconds=watch.seconds,
        table=[
            {name.replace("_", " "): row[name] for name in row if name != "same"} for row in rows
        ],
        shortfall=shortfall,
    )


def _carried_out(chains: Chains, folder: Path) -> list[dict[str, object]]:
    """A row a job, as `infra.drill.inside` tells them."""
    jobs = {job for chain in chains for job, _ in chain}
    rows: list[dict[str, object]] = []
    with (folder / "drill.log").open("w") as log:
        process = subprocess.Popen(
            [
                *namespaces(),
                *(sys.executable, "-m", "infra.drill.inside", str(folder), json.dumps(chains)),
            ],
            cwd=REPOSITORY,
            env=_environment(),
            stdin=subprocess.PIPE,  # when this process ends, so does that one
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            with track("drill", len(jobs) + sum(map(len, chains)), "jobs") as bar:
                for line in process.stdout:
                    rows.append(json.loads(line))
                    bar.advance(1, note=f"{rows[-1]['job']}: {rows[-1]['outcome']}")
        finally:
            process.kill()  # with all that runs in its namespaces
            process.wait()
    return rows


def _environment() -> dict[str, str]:
    """Without what points to a store or cluster of the user's own."""
    theirs = ("AWS_", "CARRARA_", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}


def namespaces() -> list[str]:
    """Of its own, where a user who is not root is one."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return command if os.geteuid() == 0 else [*command, "--user", "--map-root-user"]


def _check_tools() -> None:
    find_weed()
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"doctor --drill: no {', '.join(missing)} here; expected Linux with iproute2 and "
            "util-linux: install them, or drill on such a machine"
        )
    done = subprocess.run([*namespaces(), "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"doctor --drill: no namespaces of its own for it here ({done.stderr.strip()}); run it "
            "as root, or allow users theirs (sysctl kernel.unprivileged_userns_clone=1)"
        )


def _make_folder(folder: str | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="carrara-drill-"))
    place = Path(folder)
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"--drill-folder {folder}: holds something; expected a new folder")
    place.mkdir(parents=True, exist_ok=True)
    return place
