"""A download's workers, seen from the driver: what each is given, and what is made of their ends.

Reads and writes nothing itself.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from infra.cluster import Outcome, map_on_workers
from infra.config import Settings
from infra.errors import ShortfallError
from infra.watching.events import tell
from pipeline.corpus import SUCCESS, Shard
from pipeline.downloading import worklist
from pipeline.downloading.worklist import Plan, ShardRecord, Slice
from pipeline.fetching.fetch_settings import FetchSettings
from pipeline.pixels.pixel_settings import PixelSettings

if TYPE_CHECKING:
    from pipeline.download import Config
    from pipeline.downloading.refetch import Refetch, ShardRefetcher
    from pipeline.downloading.shard_download import Job, ShardDownloader, Stopped

Group = TypeVar("Group", bound=Settings)
Item = TypeVar("Item", Slice, "Refetch")

NUM_NAMED = 5
"""Failed shards or reasons that a message spells out."""


def run_workers(
    config: "Config",
    make: "Callable[[], Callable[[Item], ShardRecord | Stopped]]",
    items: Sequence[Item],
    records: dict[str, ShardRecord],
) -> dict[str, ShardRecord]:
    """Records of the items that had none; raises ShortfallError where not all could be made."""
    from pipeline.downloading.shard_download import Stopped

    made: dict[str, ShardRecord] = {}
    failed: list[Outcome[Item, ShardRecord | Stopped]] = []
    outcomes = map_on_workers(
        make,
        [item for item in items if item.name not in records],
        workers=config.workers,
        description="download",
        unit="rows",
        size=lambda item: item.num_rows,
    )
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome.result, Stopped):
                raise _stopped(config, outcome.result)
            if outcome.result is None:
                failed.append(outcome)
            else:
                if not made:
                    tell_who_asks(config)
                made[outcome.item.name] = outcome.result
    if failed:
        named = sorted(f"{outcome.item.name} ({outcome.error})" for outcome in failed)
        more = f" and {len(named) - NUM_NAMED} more" if len(named) > NUM_NAMED else ""
        raise ShortfallError(
            f"{config.root}: {len(failed)} of {len(items)} shards failed: "
            f"{', '.join(named[:NUM_NAMED])}{more}; run the command again to make them"
        )
    return made


def tell_who_asks(settings: FetchSettings) -> None:
    """Where nobody can answer, and the network is not one's own."""
    if not (settings.contact or settings.allow_hosts):
        tell(
            "note",
            f"download: asks as {settings.user_agent!r}, without an address: with --contact URL or "
            "MAIL sites' owners can write to you before they block you",
        )


def make_downloader(config: "Config", plan: Plan) -> "ShardDownloader":
    from pipeline.downloading.shard_download import ShardDownloader

    return ShardDownloader(_job(config, plan))


def make_refetcher(config: "Config", plan: Plan, reachable: Shard) -> "ShardRefetcher":
    """`reachable`: a shard of the corpus that has pictures."""
    from pipeline.downloading.refetch import ShardRefetcher

    return ShardRefetcher(_job(config, plan), reachable)


def _job(config: "Config", plan: Plan) -> "Job":
    from pipeline.downloading.decoder import DecodeJob
    from pipeline.downloading.shard_download import Job
    from pipeline.takedown.tombstones import read_tombstones

    verify_hash = config.verify_hash[1] if config.verify_hash else None
    hash_names = {config.compute_hash, *([verify_hash] if verify_hash else [])}
    hash_names |= {"md5"} if config.blocklist else set()
    needs_picture_hash = (
        config.verify_picture_hash is not None
        or bool(config.blocklist)
        or read_tombstones(config.root).has_pictures
    )
    return Job(
        root=config.root,
        shards_root=worklist.shards_root(config.root, plan),
        rows_a_slice=config.number_sample_per_shard,
        thread_count=config.thread_count,
        num_decoders=max(1, int(config.workers.cpus_per_worker)),
        max_waiting_bytes=config.max_waiting_mb << 20,
        compute_hash=config.compute_hash,
        verify_hash=verify_hash,
        blocklists=config.blocklist,
        has_preflight=config.min_success_rate > 0,
        # What is fetched again has all failed before.
        min_success_rate=0.0 if plan.kind == "retry" else config.min_success_rate,
        fetch=_part_of(config, FetchSettings),
        decode=DecodeJob(
            pixels=_part_of(config, PixelSettings),
            extract_exif=config.extract_exif,
            hash_names=tuple(sorted(hash_names)),
            picture_hash=needs_picture_hash,
            max_memory_mb=config.max_decode_memory_mb,
            max_seconds=config.max_decode_seconds,
        ),
    )


def _part_of(config: "Config", settings: type[Group]) -> Group:
    return settings(**{name: getattr(config, name) for name in settings.model_fields})


def _stopped(config: "Config", stopped: "Stopped") -> ShortfallError:
    if stopped.message is not None:
        return ShortfallError(f"list {config.url_list}: {stopped.message}")
    reasons = stopped.reasons
    num, num_good = sum(reasons.values()), reasons.get(SUCCESS, 0)
    return ShortfallError(
        f"list {config.url_list}: {num_good:,} of the first {num:,} rows gave a picture, "
        f"under --min-success-rate {config.min_success_rate:g}: "
        f"{spelled(reasons)}; finished shards are kept: mend what fails and run the command "
        "again, or lower the rate"
    )


def spelled(reasons: Mapping[str, int]) -> str:
    most = Counter(reasons).most_common(NUM_NAMED)
    return ", ".join(f"{name} ({num})" for name, num in most)
