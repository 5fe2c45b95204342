"""Take samples down for good: out of the shards and out of all that was computed from them.

    carrara forget ROOT --url https://example.org/1.jpg --domain example.com --near face.jpg
    carrara forget ROOT --url-list urls.txt --also PACKED     # a corpus that was packed from ROOT
    carrara forget ROOT --near face.jpg --dry-run             # look first
    carrara forget ROOT                                       # finish what was interrupted

Reads   ROOT, whole
Writes  ROOT/tombstones.parquet          at once: later downloads and packs refuse these rows
        ROOT/forget/                     the new files, until all of them are put in place
        ROOT/shards columns embeddings index selections manifest.json    those that held any of it
        ROOT/receipts/<time>.json        what was asked, found and changed, with digests

A forgotten row keeps its place and its uid in the parquet, and nothing else. Shards that hold none
of it keep their bytes. Safe to kill: the tombstones stand from the start, the corpus changes as
one, and the same command again ends in the same bytes.
"""

from collections import Counter
from typing import Annotated

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ShortfallError
from infra.summary import Stopwatch, Summary
from pipeline.corpus import manifest_url, read_manifest
from pipeline.takedown.asked import MANY, Request, asked_for
from pipeline.takedown.blocklists import load_blocklist
from pipeline.takedown.plan import begin
from pipeline.takedown.receipts import Asked, Receipt, receipt_url
from pipeline.takedown.run import take_down
from pipeline.takedown.search import preview
from pipeline.takedown.tombstones import add_tombstones, read_tombstones

NUM_SHOWN = 50
"""Rows of a dry run that are shown to people; --json has all."""


class Config(Request, StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    also: Annotated[tuple[Place, ...], MANY, EXECUTION_ONLY] = ()
    """Corpora that were packed from it, to be treated alike."""
    dry_run: Annotated[bool, EXECUTION_ONLY] = False
    """Show what would go from ROOT, and leave everything as it is."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()


def run(config: Config) -> Summary:
    """Raises ShortfallError where a shard can't be read; the tombstones stand all the same."""
    with Stopwatch() as watch:
        asked = asked_for(config)
        for blocklist in config.blocklist:
            load_blocklist(blocklist)
        if config.dry_run:
            return _dry_run(config, asked)
        places = (config.root, *config.also)
        unfinished = [place for place in places if not _is_whole(place)]
        plans = [begin(place, asked) for place in places]
        if unfinished:
            raise ShortfallError(
                f"{unfinished[0]}: its download has not come to its end; it refuses from now on "
                f"what was asked; let it finish, then run `carrara forget {unfinished[0]}`"
            )
        receipts = []
        for place, plan in zip(places, plans, strict=True):
            add_tombstones(place, read_tombstones(config.root).stones)
            receipts.append(take_down(place, plan, config.workers))
    return _summary(config, receipts, watch)


def _dry_run(config: Config, asked: Asked) -> Summary:
    with Stopwatch() as watch:
        rows = preview(config.root, asked, config.workers)
    counts = Counter(row["found_by"] for row in rows)
    num_samples = read_manifest(config.root).num_samples
    return Summary(
        stage="forget",
        num_in=num_samples,
        num_out=num_samples,
        counts={"rows found": len(rows)} | {f"by {kind}": num for kind, num in counts.items()},
        seconds=watch.seconds,
        details={"dry run": True, "rows": rows},
        table=rows[:NUM_SHOWN],
    )


def _summary(config: Config, receipts: list[Receipt], watch: Stopwatch) -> Summary:
    found = sum((Counter(one.found) for one in receipts), Counter[str]())
    written = {
        "receipt" if place == config.root else f"receipt of {place}": url
        for place, one in zip((config.root, *config.also), receipts, strict=True)
        if storage.exists(url := receipt_url(place, one.name))
    }
    lost = "; ".join(f"{name}: {why}" for one in receipts for name, why in one.not_rebuilt.items())
    return Summary(
        stage="forget",
        num_in=sum(one.num_samples_before for one in receipts),
        num_out=sum(one.num_samples_after for one in receipts),
        counts={"rows found": found.total()} | {f"by {kind}": num for kind, num in found.items()},
        seconds=watch.seconds,
        outputs=written,
        details={
            "tombstones": len(read_tombstones(config.root)),
            "shards rewritten": sum(len(one.shards) for one in receipts),
            "corpus digest": receipts[0].corpus_digest.after,
        },
        shortfall=lost and f"what was asked is gone, but not built again is the {lost}",
    )


def _is_whole(root: str) -> bool:
    """Raises InputError where nothing is that could ever become a corpus."""
    if storage.exists(manifest_url(root)):
        # New shards that are complete and about to take the places of the old ones.
        return not storage.exists(storage.join(root, "download", "manifest.json"))
    if not storage.list_names(storage.join(root, "download")):
        read_manifest(root)
    return False
