"""The emoji corpus behind a real HTTP server on 127.0.0.1, with faults planted on purpose.

Reads pictures.zip and captions.csv beside this file. `write_list` makes the list of URLs and
captions that `carrara download` reads, and a record of what was planted in it; `serve` answers.

    python -m examples.emoji.server pairs.parquet --num-pictures 300 --port 8123

writes a list and answers until it is stopped.
"""

import argparse
import csv
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

NUM_MISSING = 3
NUM_DUPLICATES = 5
NUM_SWAPPED_PAIRS = 10
HUGE_SIDE = 20_000

PAGE = b"<!doctype html><title>Moved</title><p>This picture has moved.</p>"


def write_list(path: Path, base_url: str, num_pictures: int | None = None, seed: int = 0) -> None:
    """Write the list as parquet: url, caption, and in `planted` what is wrong with the row.

    Every `len / num_pictures`-th picture is taken, so that a short list spans all categories.
    Only url and caption are meant for `download`; `planted` is for checking what it did.
    """
    with (HERE / "captions.csv").open(encoding="utf-8", newline="") as file:
        pictures = [(row["file_name"], row["caption"]) for row in csv.DictReader(file)]
    if num_pictures is not None:
        step = len(pictures) / num_pictures
        pictures = [pictures[int(place * step)] for place in range(num_pictures)]
    rows = [(f"{base_url}/{name}", caption, "") for name, caption in pictures]

    chance = random.Random(seed)
    swapped = chance.sample(range(len(rows)), 2 * NUM_SWAPPED_PAIRS)
    for one, other in zip(swapped[::2], swapped[1::2], strict=True):
        (url, caption, _), (other_url, other_caption, _) = rows[one], rows[other]
        rows[one] = (url, other_caption, "swapped caption")
        rows[other] = (other_url, caption, "swapped caption")
    sound = [row for row in rows if not row[2]]
    rows += [
        (url, caption, "duplicate") for url, caption, _ in chance.sample(sound, NUM_DUPLICATES)
    ]
    rows += [(f"{base_url}/gone-{n}.png", f"gone {n}", "404") for n in range(NUM_MISSING)]
    rows += [
        (f"{base_url}/page.jpg", "a page, not a picture", "HTML named .jpg"),
        (f"{base_url}/truncated.png", "half a picture", "truncated"),
        (f"{base_url}/huge.png", "a picture of 400 megapixels", "huge"),
    ]
    chance.shuffle(rows)
    columns = list(zip(*rows, strict=True))
    pq.write_table(pa.table(columns, names=["url", "caption", "planted"]), path)


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Serve the pictures for the length of the `with`; yields the base URL. Port 0: any free."""
    _answers()  # once, before many threads ask for it at the same time
    server = _Server(("127.0.0.1", port), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    """Connections that may wait: a downloader opens a hundred at once, the default holds five."""

    def handle_error(self, request: object, client_address: object) -> None:
        """A downloader may hang up whenever it likes; that is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = _answers().get(self.path.removeprefix("/"))
        self.send_response(HTTPStatus.OK if body is not None else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        """A line a picture would drown the progress bars."""


@cache
def _answers() -> dict[str, bytes]:
    with zipfile.ZipFile(HERE / "pictures.zip") as pictures:
        answers = {name: pictures.read(name) for name in pictures.namelist()}
    whole = answers["1f600.png"]
    answers |= {
        "page.jpg": PAGE,
        "truncated.png": whole[: len(whole) // 2],
        "huge.png": _blank_png(HUGE_SIDE),
    }
    return answers


def _blank_png(side: int) -> bytes:
    """A one-bit grey PNG: 50 kB that would decode to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a list of emoji and serve what it names.")
    parser.add_argument("list", type=Path, help="the parquet to write")
    parser.add_argument("--num-pictures", type=int, help="none: all 1,911")
    parser.add_argument("--port", type=int, default=8123)
    arguments = parser.parse_args()
    with serve(arguments.port) as base_url:
        write_list(arguments.list, base_url, arguments.num_pictures)
        print(f"{arguments.list}: pictures at {base_url}; stop with Ctrl-C", flush=True)
        Event().wait()


if __name__ == "__main__":
    main()
