"""How many records a second one core extracts, against cc2dataset and against BeautifulSoup.

    python benchmarks/extract.py --num-pages 1500 --num-rounds 3

Writes a WARC file of made-up pages of realistic size and shape and derives its WAT. Then each side
reads the same file in a process of its own, one after the other, round by round:

    WAT    carrara extract's worker | cc2dataset 1.5.0's process_wat
    WARC   carrara extract's worker | fastwarc with BeautifulSoup over lxml | ... over html.parser

Ours does all that a worker of the stage does: it tells captions, resolves, sorts, removes an
archive's duplicates and writes parquet. The others' give lists of (url, alt) in memory. Last the
stage as a whole, which merges and tells languages besides. Seconds are the process's CPU time, from
opening the file to the last pair, the second time that it reads it. Peers are installed into
--peer-env on the first run. The default takes about four minutes.
"""

import argparse
import gzip
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from benchmarks.peers import peer_python
from tests.pipeline.derived_wat import derive_wat

PEERS = ("cc2dataset==1.5.0", "setuptools<81", "beautifulsoup4==4.15.0", "lxml==6.0.2")

TIMED = """
import json, time
answer = read()  # the first time, libraries load what they need
start = time.process_time()
answer = read()
print(json.dumps({"seconds": time.process_time() - start, "pairs": answer}))
"""

OURS = """
import sys, tempfile
from pipeline.extraction.archive_reader import ArchiveReader
from pipeline.extraction.archives import find_archives

def read():
    with tempfile.TemporaryDirectory() as folder:
        (archive,) = find_archives([sys.argv[1]], None)
        record = ArchiveReader(folder, 5, 1 << 20)(archive)
        assert record.damage is None
        return record.images["pairs"]
"""

STAGE = """
import sys, tempfile
from infra.cluster import Workers
from pipeline.extract import Config, run

def read():
    with tempfile.TemporaryDirectory() as folder:
        config = Config(archives=(sys.argv[1],), root=folder, workers=Workers(local=True))
        return run(config).num_out
"""

CC2DATASET = """
import sys
from loguru import logger
from cc2dataset.main import process_wat
logger.remove()

def read():
    return len(list(process_wat(sys.argv[1], "image")))
"""

BEAUTIFUL_SOUP = """
import sys, warnings
from urllib.parse import urljoin
from bs4 import BeautifulSoup
from fastwarc.warc import ArchiveIterator, WarcRecordType
warnings.simplefilter("ignore")

def read():
    pairs = []
    with open(sys.argv[1], "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            if record.http_content_type != "text/html":
                continue
            page = record.headers["WARC-Target-URI"]
            encoding = record.http_charset
            soup = BeautifulSoup(record.reader.read(), sys.argv[2], from_encoding=encoding)
            base = soup.find("base", href=True)
            home = urljoin(page, base["href"]) if base else page
            for image in soup.find_all("img", src=True, alt=True):
                alt = " ".join(image["alt"].split())
                url = urljoin(home, image["src"])
                if len(alt) >= 5 and url.startswith(("http://", "https://")):
                    pairs.append((url, alt, page))
    return len(pairs)
"""


Side = tuple[Path, str, Path, str]
"""Interpreter, program, archive, and BeautifulSoup's parser."""


def main() -> None:
    options = parse()
    ours, peer = Path(sys.executable), peer_python(Path(options.peer_env), *PEERS)
    with tempfile.TemporaryDirectory(prefix="carrara-bench-") as folder:
        warc = Path(folder) / "pages.warc.gz"
        wat = Path(folder) / "pages.warc.wat.gz"
        num_bytes = write_warc(warc, options.num_pages)
        derive_wat(warc, wat)
        num_records = {warc: 1 + 3 * options.num_pages, wat: 2 + 3 * options.num_pages}
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
        print(
            f"{options.num_pages} pages, {num_bytes / options.num_pages / 1e3:.0f} KB each; WARC "
            f"{warc.stat().st_size / 1e6:.1f} MB, WAT {wat.stat().st_size / 1e6:.1f} MB"
        )
        sides: dict[str, Side] = {
            "WAT   carrara": (ours, OURS, wat, ""),
            "WAT   cc2dataset": (peer, CC2DATASET, wat, ""),
            "WARC  carrara": (ours, OURS, warc, ""),
            "WARC  BeautifulSoup, lxml": (peer, BEAUTIFUL_SOUP, warc, "lxml"),
            "WARC  BeautifulSoup, html.parser": (peer, BEAUTIFUL_SOUP, warc, "html.parser"),
            "WAT   carrara, whole stage": (ours, STAGE, wat, ""),
            "WARC  carrara, whole stage": (ours, STAGE, warc, ""),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        pairs = {}
        for _ in range(options.num_rounds):
            for name, (python, program, file, parser) in sides.items():
                answer = run(python, program, file, parser)
                rates[name].append(num_records[file] / answer["seconds"])
                pairs[name] = int(answer["pairs"])
    show(rates, pairs)


def run(python: Path, program: str, file: Path, parser: str) -> dict[str, float]:
    command = [str(python), "-c", program + TIMED, str(file), parser]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def show(rates: dict[str, list[float]], pairs: dict[str, int]) -> None:
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{'records a second, one core':34} {'median':>9} {'lowest':>9} {'highest':>9} {'pairs':>9}"
    )
    for name, values in rates.items():
        print(
            f"{name:34} {middle[name]:9,.0f} {min(values):9,.0f} {max(values):9,.0f} "
            f"{pairs[name]:9,}"
        )
    for name in middle:
        ours = name.partition("  ")[0].strip().ljust(4) + "  carrara"
        if "carrara" not in name:
            print(
                f"{middle[ours] / middle[name]:6.1f} times {name.split(None, 1)[1]}, on {ours[:4]}"
            )


# Made-up pages


WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new could these "
    "harbour winter mountain kitchen garden bicycle painting window river market bridge forest "
    "museum evening train wooden copper silver yellow crimson ancient modern portrait landscape"
).split()


def write_warc(path: Path, num_pages: int) -> int:
    """Records as Common Crawl has them: request, response, metadata. Gives the pages' bytes."""
    generator = random.Random(0)
    num_bytes = 0
    with path.open("wb") as file:
        file.write(gzip.compress(record("warcinfo", "", "application/warc-fields", b"a: b\r\n")))
        for number in range(num_pages):
            url = f"https://site{number % 97}.example.org/articles/{number}/index.html"
            html = page(generator, number).encode()
            num_bytes += len(html)
            head = (
                "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
                f"Content-Length: {len(html)}\r\nServer: nginx\r\nVary: Accept-Encoding\r\n\r\n"
            )
            http = "application/http; msgtype="
            asked = (
                f"GET /articles/{number}/index.html HTTP/1.1\r\nHost: example.org\r\n\r\n".encode()
            )
            for content in (
                record("request", url, f"{http}request", asked),
                record("response", url, f"{http}response", head.encode() + html),
                record("metadata", url, "application/warc-fields", b"fetchTimeMs: 312\r\n"),
            ):
                file.write(gzip.compress(content, 6))
    return num_bytes


def record(kind: str, url: str, content_type: str, content: bytes) -> bytes:
    headers = {
        "WARC-Type": kind,
        "WARC-Date": "2026-01-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid4()}>",
        "Content-Length": str(len(content)),
        "Content-Type": content_type,
    } | ({"WARC-Target-URI": url} if url else {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + content + b"\r\n\r\n"


def page(generator: random.Random, number: int) -> str:
    """About 80 KB: a third of it scripts and styles, 120 links, 40 pictures, 4 in 10 relative."""

    def words(num: int) -> str:
        return " ".join(generator.choices(WORDS, k=num))

    def link() -> str:
        return f'<li class="nav-item"><a href="/{words(2).replace(" ", "-")}">{words(3)}</a></li>'

    def picture() -> str:
        name = f"{generator.randrange(10**6)}-{words(3).replace(' ', '-')}.jpg"
        relative = generator.random() < 0.4  # as of Common Crawl's pages (MetaCLIP)
        source = f"../media/{name}" if relative else f"https://cdn.example.com/media/{name}"
        alt = generator.choice(("", "", "logo", words(4), words(9), f"{words(5)} &amp; {words(2)}"))
        return (
            '<figure class="wp-block-image size-large"><img loading="lazy" width="640" '
            f'height="480" src="{source}" alt="{alt}" class="wp-image-{number}"></figure>'
        )

    scripts = "".join(
        f"<script>var s{i}={{a:{generator.random()},b:'{words(300)}'}};</script>" for i in range(12)
    )
    body = "".join(
        f'<div class="entry"><h2>{words(6)}</h2><p>{words(110)}</p>{picture()}'
        f"<p>{words(60)}</p></div>"
        for _ in range(40)
    )
    navigation = f"<ul>{''.join(link() for _ in range(120))}</ul>"
    head = f'<meta charset="utf-8"><title>{words(7)}</title><link rel="stylesheet" href="/s.css">'
    return (
        f"<!DOCTYPE html><html><head>{head}</head><body>{navigation}{body}{scripts}</body></html>"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-pages", type=int, default=1500)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument(
        "--peer-env", default=str(Path.home() / ".cache" / "carrara" / "cc2dataset")
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
