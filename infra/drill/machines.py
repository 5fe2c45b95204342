"""Machines to rehearse on: each with its own address, processes, disk and shared memory.

They are Linux namespaces on this machine, joined by a bridge as by a switch, so that one can lose
its power (every process of it dies at once), its cable, or the room on its disk, and nothing else
here notices. Run within namespaces of one's own (`infra.drill.inside`), where all of it ends with
the rehearsal, whatever ends the rehearsal.
"""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BRIDGE = "switch"
OUTSIDE = "10.77.0.1"
"""This side's address: where the machines find storage and the pictures."""

HEAD_PORT = 6379
DASHBOARD_PORT = 8265

SCRATCH = Path("/run/disk")
"""Each machine's own disk, of the same name: Ray's session, the job's code, what a worker spools.
The name is short because a Unix socket's may have no more than 107 characters."""
FILLER = SCRATCH / "filler"
SCRATCH_MB = 600
SHM_MB = 160
RUN_TIMEOUT_S = 30.0
OBJECT_STORE_BYTES = 80 << 20

NOTICED_AFTER = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray holds a silent machine for lost after about a minute; for the rehearsal, after 20 s."""
CODE_KEPT_S = {"RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": "600"}
"""The head forgets a job's uploaded code after 30 s, which a busy machine needs to start it."""


@dataclass
class Machine:
    """One Ray node; a supervisor on it starts Ray again when Ray ends, as systemd would."""

    name: str
    address: str
    head: str
    """The address of the machine whose Ray leads."""
    num_cpus: int
    folder: Path
    """What it and this side both see: its log, and what of the head outlives the machine."""
    environment: dict[str, str]
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def is_head(self) -> bool:
        return self.address == self.head

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def plug_in(self) -> None:
        """The network's side of it; once."""
        cable = f"{self.name}-cable"
        _ip("netns", "add", self.name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", cable, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        # Leads nowhere, but Ray finds a machine's address by asking for a way out.
        _ip("-n", self.name, "route", "add", "default", "via", OUTSIDE)

    def turn_on(self) -> None:
        assert not self.is_on
        self.folder.mkdir(exist_ok=True)
        SCRATCH.mkdir(exist_ok=True)
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        command = ["ip", "netns", "exec", self.name, *namespaces, "--uts"]
        with (self.folder / "ray.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "bash", "-c", self._boot()],
                env=self.environment | {"TMPDIR": str(SCRATCH)},
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # its share of the processor is its own, too
            )

    def lose_power(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pull_cable(self) -> None:
        _ip("link", "set", f"{self.name}-cable", "down")

    def put_cable_back(self) -> None:
        _ip("link", "set", f"{self.name}-cable", "up")

    def fill_disk(self) -> None:
        """To its last byte, with one file."""
        said = self._run(f"head -c {2 * SCRATCH_MB}M /dev/zero > {FILLER}")
        assert "No space left" in said, said

    def free_disk(self) -> None:
        self._run(f"rm -f {FILLER}")

    def processes(self) -> dict[int, str]:
        """Command lines of what runs on it, by this side's process ids."""
        assert self._process is not None
        parents, lines = {}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
                lines[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile

        def is_here(process: int) -> bool:
            assert self._process is not None
            while process in parents and process != self._process.pid:
                process = parents[process]
            return process == self._process.pid

        return {process: line for process, line in lines.items() if is_here(process)}

    def _run(self, script: str) -> str:
        """In its own view of the disk; what went to stderr."""
        assert self._process is not None
        (init,) = _children(self._process.pid)
        command = ["nsenter", f"--target={init}", "--mount", "bash", "-c", script]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        ).stderr

    def _boot(self) -> str:
        ray = shlex.join(self._ray())
        return (
            f"hostname {self.name}\n"
            f"mount -t tmpfs -o size={SCRATCH_MB}m tmpfs {SCRATCH}\n"
            f"mount -t tmpfs -o size={SHM_MB}m tmpfs /dev/shm\n"
            # No name server answers here: without one a question fails at once, else after 40 s.
            "mount --bind /dev/null /etc/resolv.conf\n"
            # Not `exec`: the shell collects what Ray's processes leave behind.
            f"while true; do {ray}; sleep 1; done\n"
        )

    def _ray(self) -> list[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--disable-usage-stats", f"--node-ip-address={self.address}"]
        command += [f"--num-cpus={self.num_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--temp-dir={SCRATCH}"]
        if not self.is_head:
            return [*command, f"--address={self.head}:{HEAD_PORT}"]
        command += ["--head", f"--port={HEAD_PORT}", "--include-dashboard=true"]
        return [*command, "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]


def _children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def lay_cables() -> None:
    """The switch, and this side's place at it."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def make_machines(folder: Path, num: int, environment: dict[str, str]) -> list[Machine]:
    """`num` machines of one CPU, switched off; the first is the head."""
    head = "10.77.0.10"
    machines = []
    for i in range(num):
        name = f"node{i}"
        theirs = environment | NOTICED_AFTER | CODE_KEPT_S
        if i == 0:
            # On a disk that outlives the machine; without, the head comes back knowing nothing.
            theirs |= {
                "RAY_gcs_storage": "rocksdb",
                "RAY_gcs_storage_path": str(folder / name / "gcs"),
            }
        machines.append(Machine(name, f"10.77.0.{10 + i}", head, 1, folder / name, theirs))
    for machine in machines:
        machine.plug_in()
    return machines


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def environment_of_machines(folder: Path, s3_endpoint: str) -> dict[str, str]:
    """As a fresh user's on each of them: nothing of ours is inherited but the way to Python."""
    return {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        # The machines know no names of each other, by which gloo would ask for their addresses.
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
