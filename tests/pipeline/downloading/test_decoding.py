"""Decoders that crash, hang, run out of memory or are killed: the picture alone is lost, if any."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.malformed_pictures import malformed_pictures, whole_pictures
from pipeline.downloading.decoder import Decoded, DecodeJob, PictureDecoder
from pipeline.downloading.decoding import Decoders
from pipeline.fetching.fetch_settings import Failure, Fetched
from pipeline.pixels.resizer import PixelSettings
from tests.pipeline.conftest import jpeg

if TYPE_CHECKING:
    from pipeline.fetching.fetch import Fetcher
    from tests.pipeline.conftest import Script

    MakeFetcher = Callable[..., Fetcher]
    Scripted = Callable[[Script], str]

JOB = DecodeJob(pixels=PixelSettings(image_size=16), max_memory_mb=256, max_seconds=1)

HOSTILE = '''
import os, signal, sys, time
from pipeline.downloading.decoder import Decoded, PictureDecoder, serve

channel = int(sys.argv[1])

class Hostile(PictureDecoder):
    """Does to itself what its input says."""
    def __call__(self, data):
        match data:
            case b"segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"abort":
                os.abort()
            case b"bug":
                raise RuntimeError("not foreseen")
            case b"loop":
                while True:
                    pass
            case b"sleep":
                time.sleep(1000)
            case b"memory":
                bytearray(1 << 30)
            case b"stall":
                os.write(channel, bytes([0, 0, 1, 0]) + b"and no more")
                time.sleep(1000)
            case b"endless":
                os.write(channel, bytes([255] * 4))
                time.sleep(1000)
            case b"babble":
                os.write(channel, bytes([0, 0, 0, 12, 0, 0, 0, 8]) + b"no JSON.")
                time.sleep(1000)
            case b"hash":
                return Decoded("0" * 64, picture_hash="no hash"), b""
        return super().__call__(data)

serve(Hostile)
'''


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Decoders]:
    program = tmp_path / "hostile.py"
    program.write_text(HOSTILE)
    decoders = Decoders(JOB, 1, 1 << 20, (sys.executable, str(program)))
    yield decoders
    decoders.close()


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(JOB, 2, 1 << 20)
    yield made
    made.close()


def fetched(*data: bytes) -> Iterator[tuple[int, Fetched | Failure]]:
    return ((place, Fetched(picture)) for place, picture in enumerate(data))


def reasons(decoders: Decoders, *data: bytes) -> list[str | None]:
    found = {}
    for place, picture in decoders.decode_all(fetched(*data)):
        assert not isinstance(picture, Failure)
        found[place] = picture.facts.reason
    return [found[place] for place in range(len(data))]


def test_a_picture_that_brings_a_decoder_down_costs_itself_alone(hostile: Decoders) -> None:
    hostilities = {
        b"segfault": "decoder crashed",
        b"abort": "decoder crashed",
        b"bug": "decoder crashed",
        b"loop": "too slow to decode",
        b"sleep": "too slow to decode",
        b"memory": "too much memory",
        b"no picture": "not an image",
    }
    batch = [data for place, bad in enumerate(hostilities) for data in (jpeg(place), bad)]
    found = reasons(hostile, *batch)
    assert found[1::2] == list(hostilities.values())
    assert found[::2] == [None] * len(hostilities)


def test_a_decoder_that_was_taken_over_costs_its_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.downloading.decoder_process.MESSAGE_TIMEOUT_S", 1)
    program = tmp_path / "hostile.py"
    program.write_text(HOSTILE)
    decoders = Decoders(JOB, 1, 1 << 20, (sys.executable, str(program)))
    hostilities = {
        b"stall": "too slow to decode",
        b"endless": "decoder crashed",
        b"babble": "decoder crashed",
        b"hash": "decoder crashed",
    }
    batch = [data for place, bad in enumerate(hostilities) for data in (jpeg(place), bad)]
    found = reasons(decoders, *batch)
    decoders.close()
    assert found[1::2] == list(hostilities.values())
    assert found[::2] == [None] * len(hostilities)


NOSY = """
import json, os, socket, sys
from pathlib import Path
from pipeline.downloading.decoder import Decoded, PictureDecoder, serve

if os.getuid() == 0:
    os.setuid(65534)  # of root's processes none is too many

TRIES = {
    "file": lambda: open("/etc/passwd").close(),
    "folder": lambda: os.listdir("/"),
    "environment of the parent": lambda: open(f"/proc/{os.getppid()}/environ").close(),
    "socket": lambda: socket.socket().close(),
    "copy of a file": lambda: os.close(os.dup(0)),
    "writing": lambda: os.write(2, b"to a file"),
    "process": lambda: os.fork() or os._exit(0),
    "secret": lambda: os.environ["AWS_SECRET_ACCESS_KEY"],
}

class Nosy(PictureDecoder):
    def __call__(self, data):
        done = []
        for name, attempt in TRIES.items() if data == b"look" else ():
            try:
                attempt()
                done.append(name)
            except (OSError, KeyError):
                pass
        return Decoded("0" * 64, reason=json.dumps(done)), b""

serve(Nosy)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' limits differ")
def test_a_decoder_has_no_files_no_network_and_no_secrets(tmp_path: Path) -> None:
    program, log = tmp_path / "nosy.py", tmp_path / "log"
    program.write_text(NOSY)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import sys\n"
        "from pipeline.downloading.decoder import DecodeJob\n"
        "from pipeline.downloading.decoding import Decoders\n"
        "from pipeline.fetching.fetch_settings import Fetched\n"
        "from pipeline.pixels.resizer import PixelSettings\n"
        f"program = (sys.executable, {str(program)!r})\n"
        "decoders = Decoders(DecodeJob(pixels=PixelSettings()), 1, 1 << 20, program)\n"
        "((_, picture),) = decoders.decode_all(iter([(0, Fetched(b'look'))]))\n"
        "print(picture.facts.reason)\n"
        "decoders.close()\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "AWS_SECRET_ACCESS_KEY": "secret"}
    with log.open("wb") as stderr:
        answer = subprocess.run(
            [sys.executable, str(parent)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=True,
            timeout=300,
        )
    assert answer.stdout.strip() == b"[]"
    assert log.read_bytes() == b""


def test_without_files_every_format_is_decoded_as_with_them() -> None:
    pixels = PixelSettings(image_size=16, max_image_area=1 << 20)
    job = DecodeJob(pixels=pixels, hash_names=("md5", "sha512"), picture_hash=True)
    batch = [data for _, data in whole_pictures()]
    batch += [picture.data for picture in malformed_pictures(200, seed=2)]
    here = PictureDecoder(job)
    decoders = Decoders(job, 1, 1 << 24)
    found = dict(decoders.decode_all(fetched(*batch)))
    decoders.close()
    for place, data in enumerate(batch):
        picture = found[place]
        assert not isinstance(picture, Failure)
        assert (picture.facts, picture.data) == here(data), place


def test_failures_are_handed_through_and_nothing_is_lost(decoders: Decoders) -> None:
    answers: list[tuple[int, Fetched | Failure]] = [
        (place, Failure("http 404") if place % 3 else Fetched(jpeg(place))) for place in range(60)
    ]
    found = dict(decoders.decode_all(iter(answers)))
    assert sorted(found) == list(range(60))
    assert sum(isinstance(answer, Failure) for answer in found.values()) == 40


def test_a_decoder_is_heard_while_the_network_is_silent(
    decoders: Decoders, scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    """The second picture is not sent before the first one has come out."""
    is_out = threading.Event()

    def answer(head: bytes) -> Iterator[bytes]:
        assert b"GET /first " in head or is_out.wait(timeout=60)
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        yield jpeg(1)

    url = scripted(answer)
    fetcher = make_fetcher(2, opt_outs=[], timeout=120)
    requests = [(0, f"{url}/first"), (1, f"{url}/second")]
    found = []
    with closing(fetcher.fetch_beside(requests, decoders.fileno())) as answers:
        for place, picture in decoders.decode_all(answers):
            assert not isinstance(picture, Failure)
            found.append(place)
            is_out.set()
    assert found == [0, 1]


def test_a_decoder_that_was_killed_at_rest_is_replaced(decoders: Decoders) -> None:
    assert reasons(decoders, jpeg(1)) == [None]
    for child in children(os.getpid()):
        if b"pipeline.downloading.decoder" in cmdline(child):
            os.kill(child, signal.SIGKILL)
    assert reasons(decoders, *map(jpeg, range(8))) == [None] * 8


def test_a_picture_larger_than_what_may_wait_is_decoded_alone(decoders: Decoders) -> None:
    large = jpeg(3, 2000, 1500)
    assert len(large) > 1 << 20
    assert reasons(decoders, jpeg(1), large, jpeg(2), large) == [None] * 4


def test_what_goes_wrong_while_fetching_is_raised_and_the_decoders_go_on(
    decoders: Decoders,
) -> None:
    def broken() -> Iterator[tuple[int, Fetched | Failure]]:
        yield 0, Fetched(jpeg(1))
        raise RuntimeError("the network fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        list(decoders.decode_all(broken()))
    assert reasons(decoders, jpeg(1), jpeg(2)) == [None, None]


def test_a_batch_that_is_given_up_leaves_nothing_behind(decoders: Decoders) -> None:
    batch = decoders.decode_all(fetched(*[jpeg(number) for number in range(40)]))
    next(batch)
    batch.close()
    sha256s = {jpeg(50), jpeg(51)}
    found = [picture for _, picture in decoders.decode_all(fetched(*sha256s))]
    assert len(found) == 2
    assert all(isinstance(p.facts, Decoded) for p in found if not isinstance(p, Failure))


def test_killed_decoders_cost_nothing(decoders: Decoders) -> None:
    def answers() -> Iterator[tuple[int, Fetched | Failure]]:
        for place in range(30):
            if place % 10 == 5:
                for child in children(os.getpid()):
                    # Not Ray's processes, which another test may have left to this one.
                    if b"pipeline.downloading.decoder" in cmdline(child):
                        os.kill(child, signal.SIGKILL)
            yield place, Fetched(jpeg(place))

    found = dict(decoders.decode_all(answers()))
    assert sorted(found) == list(range(30))
    assert all(not isinstance(p, Failure) and p.facts.reason is None for p in found.values())


def test_fetching_pauses_while_too_many_bytes_wait() -> None:
    decoders = Decoders(JOB, 1, 4 * len(jpeg(0)))
    pulled = 0

    def answers() -> Iterator[tuple[int, Fetched | Failure]]:
        nonlocal pulled
        for place in range(50):
            pulled = place
            yield place, Fetched(jpeg(0))

    ahead = []
    for num_done, _ in enumerate(decoders.decode_all(answers())):
        time.sleep(0.005)
        ahead.append(pulled - num_done)
    decoders.close()
    assert len(ahead) == 50
    assert max(ahead) <= 7


def test_decoders_die_with_their_parent_even_while_they_decode(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import sys\n"
        "from pipeline.downloading.decoder import DecodeJob\n"
        "from pipeline.downloading.decoding import Decoders\n"
        "from pipeline.fetching.fetch_settings import Fetched\n"
        "from pipeline.pixels.resizer import PixelSettings\n"
        "job = DecodeJob(pixels=PixelSettings(), max_seconds=600)\n"
        f"program = (sys.executable, {str(tmp_path / 'hostile.py')!r})\n"
        "decoders = Decoders(job, 2, 1 << 20, program)\n"
        "print('ready', flush=True)\n"
        "list(decoders.decode_all(enumerate([Fetched(b'loop')])))\n"
    )
    repository = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, str(parent)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(repository)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pids = children(process.pid)
        assert len(pids) == 2
        process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def children(parent: int) -> list[int]:
    return [
        int(pid)
        for task in Path(f"/proc/{parent}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_picture_that_waits_behind_a_bad_one_is_not_to_blame(hostile: Decoders) -> None:
    """Each bad one takes its decoder with it twice, and the next picture along."""
    assert reasons(hostile, b"segfault", jpeg(1), b"abort", jpeg(2), b"segfault") == [
        "decoder crashed",
        None,
        "decoder crashed",
        None,
        "decoder crashed",
    ]


def test_answers_larger_than_a_socket_holds_and_pictures_ahead_do_not_wait_for_each_other() -> None:
    """Kept as it is, a picture of noise comes back larger than the socket's buffer."""
    pixels = PixelSettings(image_size=2000, resize_mode="no", encode_format="png", encode_quality=0)
    decoders = Decoders(DecodeJob(pixels=pixels), 1, 1 << 24)
    small = [jpeg(number, 400, 300) for number in range(12)]
    assert max(map(len, small)) < 128 << 10
    assert reasons(decoders, *small) == [None] * len(small)
    decoders.close()
