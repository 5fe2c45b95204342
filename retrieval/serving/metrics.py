"""What Prometheus is told: clip-retrieval's histograms by their names, and what is ours besides.

A registry a service, so that several can live in one process.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds."""

THEIRS = {
    "full_knn_request_time": "Time spent processing knn request",
    "download_time": "Time spent downloading an url",
    "text_clip_inference_time": "Time spent doing a text clip inference",
    "image_clip_inference_time": "Time spent doing a image clip inference",
    "metadata_get_time": "Time spent retrieving metadata",
    "knn_index_time": "Time spent doing a knn on the index",
    "dedup_time": "Time spent deduping",
    "safety_time": "Time spent doing a safety inference",
    "image_prepro_time": "Time spent doing the image preprocessing",
    "text_prepro_time": "Time spent doing the text preprocessing",
}
"""clip-retrieval 2.45's histograms, in its words (clip_back.py)."""

OF_STEP = {
    "fetch": "download_time",
    "encode_text": "text_clip_inference_time",
    "encode_image": "image_clip_inference_time",
    "metadata": "metadata_get_time",
    "search": "knn_index_time",
    "fold": "dedup_time",
    "filter": "safety_time",
    "decode": "image_prepro_time",
}
"""Which of an answer's steps each is of; words are tokenized while they are encoded."""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.num_requests = 0
        self._theirs = {
            name: Histogram(name, text, registry=self.registry, buckets=BUCKETS)
            for name, text in THEIRS.items()
        }
        self.requests = Counter(
            "carrara_requests", "Requests", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "carrara_request_seconds",
            "From the request's first byte to the answer's last",
            ["route"],
            registry=self.registry,
            buckets=BUCKETS,
        )
        self.batch_size = Histogram(
            "carrara_batch_size",
            "Questions that were answered together",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self.inside = Gauge(
            "carrara_requests_inside", "Requests waiting or worked on", registry=self.registry
        )
        self.rows = Gauge(
            "carrara_index_rows", "Rows of an index", ["index"], registry=self.registry
        )
        self.refreshes = Counter(
            "carrara_index_refreshes", "New states taken up", ["index"], registry=self.registry
        )

    def note_answer(self, seconds: dict[str, float]) -> None:
        for step, spent in seconds.items():
            if step in OF_STEP and spent:
                self._theirs[OF_STEP[step]].observe(spent)

    def note_request(self, route: str, status: int, seconds: float) -> None:
        self.num_requests += 1
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if route == "/knn-service":
            self._theirs["full_knn_request_time"].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
