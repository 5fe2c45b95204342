"""Follow a submitted Ray job to its end, through lost connections; `infra/submit.sh` stands on it.

    python -m infra.job JOB_ID

Shows the job's log as it grows, and says when the cluster does not answer. Exit code: the command's
own, also that of one ended by a signal on a machine that lives on; LOST where it has none because
its machine or the head's memory was lost: submitting it again goes on from there.
"""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

LOST = 75
"""EX_TEMPFAIL of sysexits.h: what failed may pass, try again."""
SIGNALLED = 128
"""And the signal's number: a shell's exit code for a command that a signal ended."""
WHY: dict[signal.Signals, str] = {
    signal.SIGINT: ", interrupted",
    signal.SIGKILL: " on a machine that lives on, for want of memory most often",
}

ANSWER_TIMEOUT_S = 10.0
"""After which a question to the cluster is asked anew: across a network that was cut, Ray's client
would wait for ever."""
PATIENCE_S = 600.0
"""How long a cluster may be silent."""
TELL_EVERY_S = 60.0
"""That it is, while it is."""
ASK_AGAIN_S = 1.0
LOOK_EVERY_S = 15.0
"""At a job's state, when its log is silent."""

T = TypeVar("T")


def main() -> None:
    (job,) = sys.argv[1:]
    logging.disable(logging.INFO)  # Ray's client tells of every connection it closes
    sys.exit(asyncio.run(_Follower(job).follow()))


class _Follower:
    def __init__(self, job: str) -> None:
        self._job = job
        self._num_shown = 0
        """Characters of the log: after a reconnection it comes from its beginning again."""
        self._is_log_whole = False
        self._heard_at = time.monotonic()
        self._told_at: float | None = None
        """That nothing is heard; None: it was since."""

    async def follow(self) -> int:
        while True:
            info = await self._state()
            if info is None:
                return LOST
            if info.status.is_terminal():
                if not self._is_log_whole:
                    await self._show_log()
                return self._exit_code(info)
            await self._show_log()

    async def _state(self) -> Any:
        """What Ray knows of the job; None: nothing (any more)."""
        while True:
            try:
                info = await _in_time(lambda: self._client().get_job_info(self._job))
            except (OSError, TimeoutError) as error:
                self._unheard(str(error) or type(error).__name__)
                await asyncio.sleep(ASK_AGAIN_S)
            except RuntimeError as error:  # any answer but "OK"
                self._heard()
                if "does not exist" in str(error):
                    self._say("is not known to the cluster, whose head was replaced")
                    return None
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                self._heard()
                return info

    def _unheard(self, reason: str) -> None:
        """Say so at once and then every minute; give up when it has lasted too long."""
        now = time.monotonic()
        silent_s = now - self._heard_at
        if silent_s > PATIENCE_S:
            raise SystemExit(
                f"job {self._job}: the cluster has not answered for {silent_s:.0f} s ({reason}); "
                "the job may still run there"
            )
        if self._told_at is None or now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._say(
                f"is out of sight: the cluster has not answered for {silent_s:.0f} s ({reason}); "
                f"asked again and again, {PATIENCE_S - silent_s:.0f} s more"
            )

    def _heard(self) -> None:
        if self._told_at is not None:
            self._say(f"is in sight again, after {time.monotonic() - self._heard_at:.0f} s")
        self._heard_at, self._told_at = time.monotonic(), None

    async def _show_log(self) -> None:
        """Until it ends, falls silent or breaks off."""
        import aiohttp

        num_seen = 0
        try:
            client = await _in_time(self._client)
            lines = client.tail_job_logs(self._job)
            while True:
                text = await asyncio.wait_for(anext(lines), LOOK_EVERY_S)
                self._heard()
                print(text[max(self._num_shown - num_seen, 0) :], end="", flush=True)
                num_seen += len(text)
                self._num_shown = max(self._num_shown, num_seen)
        except StopAsyncIteration:
            self._is_log_whole = True
        except (OSError, TimeoutError, RuntimeError, aiohttp.ClientError):
            await asyncio.sleep(ASK_AGAIN_S)

    def _exit_code(self, info: Any) -> int:
        if info.status == "SUCCEEDED":
            self._say("succeeded")
            return 0
        if info.status == "STOPPED":
            self._say("was stopped")
            return 1
        code: int | None = info.driver_exit_code
        if code is None:
            self._say(f"was lost: {info.message}")
            return LOST
        return self._failed(code)

    def _failed(self, code: int) -> int:
        """Of a command whose end its machine lived to tell."""
        number = code - SIGNALLED if code > SIGNALLED else -code  # as a shell says it, or Python
        if number == signal.SIGTERM:  # which a machine that shuts down sends to all
            self._say(f"was lost: ended by {signal.SIGTERM.name}")
            return LOST
        if number not in set(signal.Signals):
            self._say(f"failed with exit code {code}")
            return code
        ended_by = signal.Signals(number)
        self._say(f"failed: ended by {ended_by.name}{WHY.get(ended_by, '')}")
        return SIGNALLED + number

    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient()  # where RAY_API_SERVER_ADDRESS says

    def _say(self, what: str) -> None:
        print(f"job {self._job} {what}", flush=True)


async def _in_time(ask: Callable[[], T]) -> T:
    """In a thread, which is left to itself where no answer comes."""
    return await asyncio.wait_for(asyncio.to_thread(ask), ANSWER_TIMEOUT_S)


if __name__ == "__main__":
    main()
