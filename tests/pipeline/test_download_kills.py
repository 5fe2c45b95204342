"""One corpus, fifty SIGKILLs: of workers, decoders, raylets and drivers; the same bytes."""

import os
import random
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.cluster import Workers
from pipeline.corpus import read_manifest
from pipeline.download import Config, run
from tests.pipeline.downloads import config, contents, start_driver

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

SEED = 20
SCHEDULE = Counter({"worker": 41, "decoder": 8, "raylet": 4, "driver": 5})
NUM_KILLS = 50
"""Of workers, raylets and drivers at the least: a decoder's end is one picture's matter."""
NUM_ROWS, ROWS_A_SHARD = 168, 6
NUM_SHARDS = NUM_ROWS // ROWS_A_SHARD
RESERVE = 4
"""The last shards: by then all kills should have landed, and those that have not still may."""
SLOW_S, FAST_S = 2.0, 0.05
"""Of an answer, while kills are behind where they should be, or not: so that they land all along
the way, and the last of them before the last shard is done."""
LEAD = 0.2
"""How far, as a share, the kills may be ahead of the shards."""
MAX_S = 480.0


class SpotCluster:
    """A head without CPUs and two machines of one CPU each, which come and go."""

    def __init__(self, processes: Callable[[bytes], list[int]]) -> None:
        from ray.cluster_utils import Cluster

        self.processes = processes
        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self.address: str = self._cluster.address

    def lose(self, index: int) -> None:
        """One machine is gone, and another comes."""
        node = self.nodes[index]
        os.kill(raylet_of(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes[index] = self._cluster.add_node(num_cpus=1)

    def close(self) -> None:
        self._cluster.shutdown()


def raylet_of(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


@pytest.fixture
def cluster(
    monkeypatch: pytest.MonkeyPatch, own_processes: Callable[[bytes], list[int]]
) -> Iterator[SpotCluster]:
    # Else Ray writes a token of its own to the home folder.
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "0" * 64))
    started = SpotCluster(own_processes)
    yield started
    started.close()


def test_fifty_kills_change_no_byte(
    site: "Site", cluster: SpotCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(site.picture(i), f"picture {i}") for i in range(NUM_ROWS)]
    pairs[7::40] = [(f"{site.url}/none.jpg?{i}", "gone") for i in range(len(pairs[7::40]))]
    settings = config(
        tmp_path,
        pairs,
        "undisturbed",
        number_sample_per_shard=ROWS_A_SHARD,
        retries=2,
        opt_outs=("x-robots-tag",),
    )
    run(settings)
    root = tmp_path / "killed"
    workers = Workers(address=cluster.address, max_retries=5)
    disturbed = settings.model_copy(
        update={"root": str(root), "workers": workers, "thread_count": 2}
    )

    start = time.monotonic()
    landed, num_drivers, num_read = disturb(disturbed, cluster, site)
    seconds = time.monotonic() - start

    with capsys.disabled():
        print(
            f"\n{sum(landed.values())} kills landed ({dict(landed)}) over {num_drivers} commands "
            f"in {seconds:.0f} s"
        )
    assert landed.total() - landed["decoder"] >= NUM_KILLS
    assert landed.keys() == SCHEDULE.keys()
    assert num_read > 0
    whole = read_manifest(settings.root)
    assert read_manifest(str(root)).digest == whole.digest
    assert contents(root) == contents(tmp_path / "undisturbed")


def disturb(settings: Config, cluster: SpotCluster, site: "Site") -> tuple[Counter[str], int, int]:
    """Run the command again and again until it ends well, killing as the schedule says; returns
    what was killed, how many commands it took and how many tars were read after their ends."""
    rng = random.Random(SEED)
    kinds = list(SCHEDULE.elements())
    rng.shuffle(kinds)
    landed: Counter[str] = Counter()
    num_read = 0
    driver, num_drivers = start_driver(settings, stderr=subprocess.DEVNULL), 1
    deadline = time.monotonic() + MAX_S
    try:
        while driver.poll() != 0:
            assert time.monotonic() < deadline, f"it takes too long; landed: {landed}"
            if driver.returncode is not None:
                driver = start_driver(settings, stderr=subprocess.DEVNULL)
                num_drivers += 1
            done = Path(settings.root, "download", "done")
            share_done = len(list(done.glob("*.json"))) / (NUM_SHARDS - RESERVE)
            share_killed = 1 - len(kinds) / SCHEDULE.total()
            is_behind = bool(kinds) and share_done > share_killed - LEAD / 2
            site.slow_s = SLOW_S if is_behind else FAST_S
            may_kill = bool(kinds) and share_killed <= share_done + LEAD
            if may_kill and kill(kinds[-1], driver, cluster, rng):
                landed[kinds[-1]] += 1
                num_read += read_tars(settings.root) if kinds.pop() == "driver" else 0
            time.sleep(rng.uniform(0.1, 0.4))
    finally:
        driver.kill()
        driver.wait()
    return landed, num_drivers, num_read


def read_tars(root: str) -> int:
    """What has a shard's name is whole at any moment; returns how many there are."""
    tars = sorted(Path(root, "shards").glob("*.tar"))
    for tar in tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None, (tar, member.name)
                assert len(file.read()) == member.size, (tar, member.name)
        assert not any(tar.read_bytes()[-2 * tarfile.BLOCKSIZE :]), tar  # the end of an archive
    return len(tars)


def kill(
    kind: str, driver: "subprocess.Popen[bytes]", cluster: SpotCluster, rng: random.Random
) -> bool:
    """False where there is none of that kind just now."""
    if kind == "raylet":
        if not cluster.processes(b"pipeline.downloading.decoder"):
            return False
        cluster.lose(rng.randrange(2))
        return True
    if kind == "driver":
        if not cluster.processes(b"pipeline.downloading.decoder"):  # it has not begun
            return False
        driver.kill()
        driver.wait()
        return True
    name = b"ray::_Worker" if kind == "worker" else b"pipeline.downloading.decoder"
    found = cluster.processes(name)
    if not found:
        return False
    os.kill(rng.choice(found), signal.SIGKILL)
    return True
