"""A job handed to the cluster through `infra/submit.sh`, as a user does it, and awaited for so
long and no longer."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SUBMIT = Path(__file__).parents[1] / "submit.sh"
STOP_TIMEOUT_S = 20.0
NAME = re.compile(r"carrara-\d{8}T\d{6}-\d+")
"""As infra/submit.sh calls its jobs."""


class Submission:
    def __init__(self, arguments: Sequence[str], dashboard: str, log: Path) -> None:
        self._log = log
        self._environment = os.environ | {"RAY_API_SERVER_ADDRESS": dashboard}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [str(SUBMIT), *arguments],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,  # so that its follower can be ended with it
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def num_tries(self) -> int:
        return 1 + self._log.read_text().count("submitting it again")

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code; None: it was given up, and the job on the cluster stopped."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._stop()
            return None

    def _stop(self) -> None:
        """Or else it would go on beside the next one."""
        names = NAME.findall(self._log.read_text())
        if not names:
            return
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--no-wait"]
        with self._log.open("a") as log:
            try:
                subprocess.run(
                    [*command, names[-1]],
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    timeout=STOP_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                log.write(f"the cluster did not stop it in {STOP_TIMEOUT_S:.0f} s\n")
