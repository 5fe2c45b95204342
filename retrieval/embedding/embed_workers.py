"""What an `embed` asks the cluster for, and what each of its workers is made of.

Reads and writes nothing itself.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from infra.cluster import Workers, connect
from retrieval.embedding.embed_progress import Report
from retrieval.embedding.embeddings import Part

if TYPE_CHECKING:
    from retrieval.embed import Config
    from retrieval.embedding.shard_embedding import ShardEmbedder

WORKERS_A_GPU = 8
"""Where the user leaves it open: each reads and decodes with its share of the cores, and what one
does between two shards the others fill."""


def resolved(config: "Config", parts: Mapping[str, Part]) -> "Config":
    """With the precision of the parts that there are, and a share of the cluster's GPUs."""
    changes: dict[str, object] = {"workers": _with_gpus(config)}
    if config.precision == "auto" and parts:
        changes["precision"] = min(part.precision for part in parts.values())
    return config.model_copy(update=changes)


def _with_gpus(config: "Config") -> Workers:
    """Where the user asked for no GPUs and the cluster has some, each worker gets its part."""
    workers = config.workers
    if workers.local or workers.gpus_per_worker or config.device == "cpu":
        return workers
    connect(workers)
    import ray

    resources = ray.cluster_resources()
    return share_gpus(workers, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def share_gpus(workers: Workers, num_cpus: float, num_gpus: float) -> Workers:
    """All cores decode for the GPUs; a worker's model takes its memory WORKERS_A_GPU times."""
    if not num_gpus:
        return workers
    cores = num_cpus // (num_gpus * WORKERS_A_GPU)
    changes = {
        "cpus_per_worker": max(workers.cpus_per_worker, cores),
        "gpus_per_worker": 1 / WORKERS_A_GPU,
    }
    return workers.model_copy(update=changes)


def make_worker(config: "Config", width: int, report: Report) -> "ShardEmbedder":
    from retrieval.embedding.shard_embedding import ShardEmbedder, limit_threads
    from retrieval.encoding.encoder import load_encoder

    num_threads = max(1, int(config.workers.cpus_per_worker))
    limit_threads(num_threads)
    encoder = load_encoder(config.encoder, config.device, config.precision)
    return ShardEmbedder(encoder, config.root, width, config.batch_size, num_threads, report)


def make_trial(config: "Config") -> Callable[[str], int]:
    from retrieval.encoding.encoder import load_encoder

    return lambda name: load_encoder(name, config.device, config.precision).dim
