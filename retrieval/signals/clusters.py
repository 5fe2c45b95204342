"""Which pictures are like those of a set that the user gives: for DataComp's image-based filter.

    carrara score ROOT --signals image_based --options.targets PICTURES_FOLDER
    carrara score ROOT --signals image_based --options.targets embeddings.npy

Reads   ROOT/embeddings/<encoder>/; the target pictures of a folder, or their embeddings by the
        same encoder, as .npy [m, d] or as a folder that `carrara embed` left, on any fsspec URL
Writes  ROOT/columns/image_based/model.npz   centroids, and how many targets each has; once

The corpus's pictures are clustered by k-means over their embeddings, and each target goes to its
nearest centroid. DataComp (Gadre et al. 2023, section 3.3) keeps the clusters that a picture of
ImageNet's training set is nearest to, of 100,000 clusters over a pool of 128 million or more; here
there is a cluster for every 40 pictures of the corpus, up to as many. `target_similarity` is the
cosine of the nearest target: NormSim-infinity of Wang et al., "CLIPLoss and Norm-Based Data
Selection" (NeurIPS 2024). It costs pictures times targets times d. The centroids are found on 256
pictures a cluster, evenly spaced over the corpus, or on as many as 8 GiB hold: that much memory the
command's own process may take.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from infra import storage
from infra.errors import ConfigError
from pipeline.corpus import Shard
from pipeline.score import Options
from retrieval.captions.corpus import EmbeddedCorpus, whole_number
from retrieval.captions.examples import Examples
from retrieval.embedding.embeddings import embeddings_url
from retrieval.knn import VectorStream, evenly_spaced

ROWS_A_CLUSTER = 40
"""faiss asks for 39 rows a centroid at least."""
MAX_CLUSTERS = 100_000
"""DataComp, section 3.3."""
NUM_ITERATIONS = 20
TRAINING_ROWS_A_CLUSTER = 256
"""faiss looks at no more."""
MAX_SAMPLE_BYTES = 8 << 30
"""Of embeddings that centroids are found on: about faiss's 39 for each of 100,000 clusters at 512
numbers, where 256 would take 52 GB."""
SEED = 0


class ImageBasedSignal:
    name = "image_based"
    schema = pa.schema(
        [
            ("cluster", pa.int32()),
            ("cluster_similarity", pa.float32()),
            ("num_targets_in_cluster", pa.int32()),
            ("target_similarity", pa.float32()),
        ]
    )

    def __init__(self, root: str, options: Options) -> None:
        self._corpus = EmbeddedCorpus(root, options)
        targets = options.get("targets")
        if targets is None:
            raise ConfigError(
                f"signals {self.name!r}: no targets given; expected --options.targets with a "
                "folder of pictures, or an .npy file of their embeddings"
            )
        self._targets = Examples(self._corpus, "targets", targets)
        num_rows = self._corpus.manifest.num_rows
        default = min(MAX_CLUSTERS, max(1, num_rows // ROWS_A_CLUSTER))
        self._num_clusters = whole_number(options, "num_clusters", default)
        if self._num_clusters > num_rows:
            raise ConfigError(
                f"options.num_clusters {self._num_clusters}: expected at most one for each of the "
                f"{num_rows} embedded pictures"
            )
        self._model_url = storage.join(root, "columns", self.name, "model.npz")

    def identity(self) -> dict[str, Any]:
        return {
            "version": 1,
            "targets": self._targets.digest,
            "num_clusters": self._num_clusters,
            "models": dict.fromkeys(self.schema.names, self._corpus.models),
            **self._corpus.identity(),
        }

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Clusters the corpus; kept, since another machine's k-means may come out otherwise."""
        if not storage.exists(self._model_url):
            targets = self._targets.embed()
            centroids = self._cluster()
            _, nearest = faiss.knn(targets, centroids, 1, faiss.METRIC_INNER_PRODUCT)
            num_targets = np.bincount(nearest[:, 0], minlength=len(centroids))
            buffer = io.BytesIO()
            np.savez(
                buffer,
                centroids=centroids,
                num_targets=num_targets,
                targets=targets.astype(np.float16),  # as the corpus's own are kept
            )
            storage.publish_bytes(self._model_url, buffer.getvalue())
        yield

    def __call__(self, shard: Shard) -> pa.Table:
        rows = self._corpus.rows(shard, "image")
        similarities, clusters = self._nearest(rows, "centroids")
        target_similarities, _ = self._nearest(rows, "targets")
        values = {
            "cluster": pa.array(clusters, pa.int32()),
            "cluster_similarity": pa.array(similarities, pa.float32()),
            "num_targets_in_cluster": pa.array(self._model["num_targets"][clusters], pa.int32()),
            "target_similarity": pa.array(target_similarities, pa.float32()),
        }
        return self._corpus.columns(shard, values)

    def _nearest(self, rows: np.ndarray, among: str) -> tuple[np.ndarray, np.ndarray]:
        """Similarity [n] to the nearest, and its number [n]."""
        found = faiss.knn(rows, self._model[among], 1, faiss.METRIC_INNER_PRODUCT)
        return found[0][:, 0], found[1][:, 0]

    @cached_property
    def _model(self) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(storage.read_bytes(self._model_url)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("num_targets", "centroids")} | {
                "targets": arrays["targets"].astype(np.float32)
            }

    def _cluster(self) -> np.ndarray:
        """Centroids [k, d], unit rows."""
        manifest = self._corpus.manifest
        folder = embeddings_url(self._corpus.root, self._corpus.encoder)
        stream = VectorStream(folder, manifest.parts, "image")
        rows = stream.take(evenly_spaced(stream.num_rows, self._num_sampled(manifest.dim)))
        kmeans = faiss.Kmeans(
            manifest.dim,
            self._num_clusters,
            niter=NUM_ITERATIONS,
            spherical=True,
            seed=SEED,
            min_points_per_centroid=1,  # of a number that the user chose there is no warning
            max_points_per_centroid=TRAINING_ROWS_A_CLUSTER,
        )
        kmeans.train(rows)
        assert kmeans.centroids is not None
        return kmeans.centroids

    def _num_sampled(self, dim: int) -> int:
        """As many as fit, but one a cluster at least."""
        num_fitting = MAX_SAMPLE_BYTES // (dim * np.dtype(np.float32).itemsize)
        num_wanted = self._num_clusters * TRAINING_ROWS_A_CLUSTER
        return max(self._num_clusters, min(num_wanted, num_fitting))
