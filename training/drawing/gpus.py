"""What workers that draw or look at pictures ask the cluster for."""

from infra.cluster import Workers, connect


def with_gpus(workers: Workers, device: str) -> Workers:
    """Where the user asked for no GPUs and the cluster has some, each worker gets one."""
    if workers.local or workers.gpus_per_worker or device == "cpu":
        return workers
    connect(workers)
    import ray

    if not ray.cluster_resources().get("GPU"):
        return workers
    return workers.model_copy(update={"gpus_per_worker": 1.0})


def num_threads(workers: Workers) -> int | None:
    """Torch's, as many as a worker has CPUs: then how many workers there are changes no rounding.
    None, to leave them as they are, in this process."""
    return None if workers.local else max(1, int(workers.cpus_per_worker))
