"""The jobs of the rehearsal: small ones, from a list of URLs to a drawn picture.

Each is a command that `infra/submit.sh` submits, what of its output shows that it is under way,
and what of it must come out the same whatever happened meanwhile.
"""

import hashlib
from dataclasses import dataclass

from infra import storage
from infra.drill.machines import OUTSIDE

PICTURES_PORT = 8090
NUM_PICTURES, PICTURES_A_SHARD = 48, 4

JOBS = ("download", "embed", "index", "train", "sample")

SETTINGS = f"""
[download]
allow_hosts = ["{OUTSIDE}"]
image_size = 32
resize_mode = "border"
number_sample_per_shard = {PICTURES_A_SHARD}
thread_count = 1
opt_outs = ["x-robots-tag"]

[embed]
encoder = "Carrara-S/emoji_clipart"
batch_size = 4

[train]
encoder = "Carrara-S/emoji_clipart"
image_size = 16
batch_size = 8
num_steps = 300
checkpoint_every = 25
log_every = 25
workers.num_workers = 2

[train.unet]
channels = 8
channel_mults = [1, 2]
num_res_blocks = 1
num_heads = 1

[sample]
num_steps = 400
"""

HOLDS_TIMES = ("_stats.json", "index.json", "metrics.jsonl", "events.jsonl")
"""Files that tell when and how fast, and so differ between any two runs."""


@dataclass(frozen=True)
class Place:
    """Where one chain of jobs reads and writes."""

    bucket: str
    name: str

    @property
    def root(self) -> str:
        return storage.join(self.bucket, self.name, "corpus")

    @property
    def run(self) -> str:
        return storage.join(self.bucket, self.name, "run")

    @property
    def picture(self) -> str:
        return storage.join(self.bucket, self.name, "run", "samples", "a.png")

    def command(self, job: str) -> list[str]:
        arguments = {
            "download": [storage.join(self.bucket, "list.parquet"), self.root],
            "embed": [self.root],
            "index": [self.root],
            "train": [self.root, self.run],
            "sample": [self.run, "picture 1", "--output", self.picture],
        }[job]
        return [job, *arguments, "--config", storage.join(self.bucket, "drill.toml")]

    def is_under_way(self, job: str) -> bool:
        """Has it finished a part of its work? Of what shows nothing before its end: does its record
        say that the work has begun?"""
        if job == "download":
            return bool(storage.list_names(storage.join(self.root, "download", "done")))
        if job == "embed":
            parts = storage.join(self.root, "embeddings", "Carrara-S__emoji_clipart", "metadata")
            return bool(storage.list_names(parts))
        if job == "train":
            files = storage.list_files(storage.join(self.run, "checkpoints"))
            return any(file.endswith("checkpoint.json") for file in files)
        records = storage.join(self.root if job == "index" else self.run, "runs")
        return any(name.endswith(f"-{job}.json") for name in storage.list_names(records))

    def digests(self, job: str) -> dict[str, str]:
        """sha256 of the files that are this job's own, by name."""
        folder = {
            "download": storage.join(self.root, "shards"),
            "embed": storage.join(self.root, "embeddings"),
            "index": storage.join(self.root, "index"),
            "train": storage.join(self.run, "checkpoints"),
            "sample": storage.join(self.run, "samples"),
        }[job]
        return {
            name: _sha256(storage.join(folder, name))
            for name in sorted(storage.list_files(folder))
            if not name.endswith(HOLDS_TIMES)
        }


def lay_out(bucket: str) -> None:
    """The list of URLs and the settings, for all chains."""
    import pyarrow as pa

    base = f"http://{OUTSIDE}:{PICTURES_PORT}"
    urls = [f"{base}/{i}.jpg" for i in range(NUM_PICTURES)]
    captions = [f"picture {i}" for i in range(NUM_PICTURES)]
    storage.publish_table(
        storage.join(bucket, "list.parquet"), pa.table({"url": urls, "caption": captions})
    )
    storage.publish_text(storage.join(bucket, "drill.toml"), SETTINGS)


def _sha256(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()
