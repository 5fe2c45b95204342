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
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from infra.drill.faults import FAULTS
from infra.drill.jobs import JOBS
from infra.drill.object_store import find_weed
from infra.errors import ConfigError
from infra.progress import track
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell

REPOSITORY = Path(__file__).parents[2]

Chains = list[list[tuple[str, str]]]
"""Of (job, fault); each begins with the list of URLs."""

A_JOB_S, A_STRUCK_JOB_S = 60.0, 100.0
"""Of the time that all of it may take, on two cores: of a job undisturbed, and of one struck with
what follows. Some take more and others less."""
ENDS_WITHIN_S = 90.0
"""After that, whatever it was at: the last step is told why it was given up."""

Row = dict[str, object]

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
        rows = carried_out(chains, place)
    rows += _not_carried_out(chains, rows)
    struck = [row for row in rows if row["fault"] != "none"]
    bad = [f"{row['job']}, {row['fault']}" for row in rows if not row["same"]]
    shortfall = ""
    if bad:
        shortfall = f"doctor --drill: {'; '.join(bad)}: see the table, and the logs in {place}"
    elif folder is None:
        shutil.rmtree(place)
    return Summary(
        stage="doctor",
        num_in=sum(map(len, chains)),
        num_out=sum(bool(row["same"]) for row in struck),
        unit="faults",
        counts=dict(Counter(str(row["fault"]) for row in struck)),
        seconds=watch.seconds,
        table=[
            {name.replace("_", " "): row[name] for name in row if name != "same"} for row in rows
        ],
        shortfall=shortfall,
    )


def carried_out(chains: Chains, folder: Path) -> list[Row]:
    """A row a job, as `infra.drill.inside` tells them; in a time that is known before."""
    jobs = {job for chain in chains for job, _ in chain}
    num_struck = sum(map(len, chains))
    num_jobs = len(jobs) + num_struck
    # The machines' start takes as long as a job.
    limit_s = A_JOB_S * (len(jobs) + 1) + A_STRUCK_JOB_S * num_struck
    arguments = [str(folder), json.dumps(chains), str(limit_s)]
    rows: list[Row] = []
    with (
        (folder / "drill.log").open("w") as log,
        subprocess.Popen(
            [*namespaces(), sys.executable, "-m", "infra.drill.inside", *arguments],
            cwd=REPOSITORY,
            env=_environment(),
            stdin=subprocess.PIPE,  # when this process ends, so does that one
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        end = threading.Timer(limit_s + ENDS_WITHIN_S, process.kill)
        end.start()
        try:
            assert process.stdout is not None
            with track("drill", num_jobs, "jobs") as bar:
                for line in process.stdout:
                    record = json.loads(line)
                    if "told" in record:
                        tell("step", f"drill: {record['told']}")
                    else:
                        rows.append(record)
                        bar.advance(1, note=f"{record['job']}: {record['outcome']}")
        finally:
            end.cancel()
            process.kill()  # with all that runs in its namespaces
    return rows


def _not_carried_out(chains: Chains, rows: Sequence[Row]) -> list[Row]:
    """Rows of the faults that no time was left for, or nothing to try them on."""
    told = Counter((str(row["job"]), str(row["fault"])) for row in rows)
    missing = Counter(pair for chain in chains for pair in chain) - told
    nothing = {"machine": "", "exit_code": None, "submitted": 0, "seconds": 0.0, "same": False}
    return [
        {"job": job, "fault": fault, **nothing, "outcome": "not carried out"}
        for job, fault in missing
    ]


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
