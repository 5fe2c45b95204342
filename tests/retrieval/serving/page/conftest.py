"""The search page in Debian's chromium, over a corpus of real emoji with the shipped encoder.

A visit fails if the browser's console shows an error, or if anything is asked of another origin
than the service's.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow as pa
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from benchmarks.made_corpus import write_made_signal
from infra.cluster import Workers
from pipeline.corpus import Manifest, iter_samples, read_manifest, write_columns
from pipeline.sample import Sample
from retrieval import embed, index
from retrieval.embedding.embeddings import EMBEDDED_ENCODER

StartService = Callable[..., AbstractContextManager[httpx.Client]]

CHROMIUM = shutil.which("chromium")
WINDOW = {"width": 1200, "height": 800}
TIMEOUT_MS = 30_000
"""For what takes some milliseconds on a machine that has nothing else to do."""
NUM_PICTURES = 96

HOSTILE = {
    90: "<img src=x onerror=\"document.title='hacked'\">",
    91: "</script><script>document.title='hacked'</script>",
    92: "\u202ereversed \u2067by an override\u202e & never closed",
    93: "long " * 2000,
    94: "{{ constructor.constructor('alert(1)')() }} ${alert(1)} <!-- -->",
}
"""Captions by number of the picture; none may become markup or reach the text around it."""

SAME_URL = {70: "https://example.org/twice.png", 71: "https://example.org/twice.png"}
HOSTILE_URL = {95: "javascript:document.title='hacked'"}


@pytest.fixture(scope="session")
def page_root(
    make_corpus: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory
) -> str:
    root = str(tmp_path_factory.mktemp("page") / "emoji")
    manifest = make_corpus(
        root, num_samples=NUM_PICTURES // 2, captions=HOSTILE, urls=SAME_URL | HOSTILE_URL
    )
    workers = Workers(local=True)
    embed.run(embed.Config(root=root, encoder=EMBEDDED_ENCODER, workers=workers))
    index.run(index.Config(root=root))
    _score_safety(root, manifest)
    return root


def _score_safety(root: str, manifest: Manifest) -> None:
    """Columns as the signal `safety` writes them: every fourth picture is not safe."""
    for shard in manifest.shards:
        uids = [sample.uid for sample in iter_samples(root, shard)]
        nudity = [0.9 if number % 4 == 0 else 0.1 for number in range(len(uids))]
        table = pa.table({"uid": uids, "nudity_exposed": pa.array(nudity, pa.float32())})
        write_columns(root, "safety", shard.name, table)
    write_made_signal(root, "safety")


@pytest.fixture(scope="session")
def samples(page_root: str) -> list[Sample]:
    shards = read_manifest(page_root).shards
    return [sample for shard in shards for sample in iter_samples(page_root, shard)]


@pytest.fixture(scope="session")
def hostile_captions() -> list[str]:
    return list(HOSTILE.values())


@pytest.fixture(scope="session")
def pictures_url() -> Iterator[str]:
    """A server of pictures, as the web has them."""
    from examples.emoji.server import serve

    with serve() as url:
        yield url


@pytest.fixture(scope="session")
def service(page_root: str, start_service: StartService) -> Iterator[str]:
    """The address of the service under test. It may fetch from this machine, for `pictures_url`."""
    fetch = {"allow_hosts": ["127.0.0.1"]}
    roots = (page_root, f"again={page_root}")
    with start_service(*roots, allow_save=True, fetch=fetch, max_wait_s=120) as client:
        yield str(client.base_url)


@dataclass
class Visit:
    """A page in a browser of its own, and what it did that it should not have done."""

    page: Page
    origins: set[str]
    """Where requests may go."""
    expected: str | None = None
    """What an error on the console may be about."""
    faults: list[str] = field(default_factory=list)

    def note_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc not in self.origins:
            self.faults.append(f"asked for {request.url}")

    def note_console(self, message: ConsoleMessage) -> None:
        is_expected = self.expected is not None and self.expected in message.text
        if message.type in ("error", "warning") and not is_expected:
            self.faults.append(f"console: {message.text}")

    def open(self, link: str = "") -> Page:
        """Goes there and waits for what was asked for to be shown."""
        self.page.goto(f"/{link}")
        self.settle()
        return self.page

    def settle(self) -> None:
        expect(self.page.locator("#index option")).not_to_have_count(0)
        expect(self.page.locator("#grid")).to_have_attribute("aria-busy", "false")

    def scroll_to_end(self) -> None:
        """Page after page, until there is no more."""
        foot, end = self.page.locator("#foot"), self.page.locator("#end")
        while not end.is_visible():
            num = self.hits.count()
            foot.scroll_into_view_if_needed()
            expect(self.hits.nth(num).or_(end).first).to_be_attached()
            self.page.wait_for_timeout(20)

    def ask(self, words: str) -> None:
        self.page.fill("#words", words)
        self.page.press("#words", "Enter")
        self.settle()

    @property
    def hits(self) -> Locator:
        """Those in the grid, without what is folded under them."""
        return self.page.locator("#grid > .hit:not(.ghost)")

    @property
    def captions(self) -> list[str]:
        alts = self.hits.locator("img").evaluate_all("all => all.map((one) => one.alt)")
        return [str(alt) for alt in alts]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with the module: while it is there, no other event loop can run in this thread."""
    assert CHROMIUM, "the search page is tested in a browser: install chromium (apt-get)"
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: Browser, service: str) -> Iterator[Callable[..., Visit]]:
    """visitor(base=service, **options) opens a browser's window, with options of its context."""
    visits = []
    with ExitStack() as stack:

        def visit(base: str = service, **options: Any) -> Visit:
            options = {"viewport": WINDOW, "reduced_motion": "reduce"} | options
            context = stack.enter_context(browser.new_context(base_url=base, **options))
            context.set_default_timeout(TIMEOUT_MS)
            made = Visit(context.new_page(), {urlsplit(base).netloc})
            made.page.on("request", made.note_request)
            made.page.on("console", made.note_console)
            made.page.on("pageerror", lambda error: made.faults.append(f"raised: {error}"))
            visits.append(made)
            return made

        yield visit
        faults = [fault for made in visits for fault in made.faults]
    assert not faults


@pytest.fixture
def visit(visitor: Callable[..., Visit]) -> Visit:
    return visitor()
