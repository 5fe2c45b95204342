"""What a core and a GPU get done: measured by `carrara plan --calibrate`, else these defaults.

The defaults were measured on one core of an AMD EPYC (Zen 4), but for GPUs, of which published runs
tell. A rate is of one core or one GPU, so that it can be held against machines of another size.
"""

from pydantic import Field

from infra.config import Settings
from infra.errors import ConfigError
from infra.records import read_record


class Rates(Settings):
    fetch_ms: float = Field(default=3.5, gt=0)
    """CPU a fetch, over HTTPS on a new connection each (docs/download.md: 396 pictures a second on
    two cores over HTTPS, 729 over HTTP, decoding included)."""
    fetch_wait_s: float = Field(default=1.0, gt=0)
    """From the first packet of a fetch to its end, hosts that time out included. An assumption: it
    is the web's, and no calibration on one machine finds it. Your own runs tell."""
    connections_per_core: int = Field(default=64, ge=1)
    """Fetches under way at once (`carrara download --thread-count`)."""
    resize_ms: float = Field(default=1.5, gt=0)
    """CPU to decode, resize to `resize_size` and encode a picture (docs/download.md)."""
    resize_size: int = Field(default=256, ge=8)
    write_ms: float = Field(default=0.1, gt=0)
    """CPU to put a sample into its shard (docs/download.md)."""
    decode_ms: float = Field(default=0.7, gt=0)
    """CPU to decode a stored picture of 256 px for an encoder or for training."""
    pack_ms: float = Field(default=0.1, gt=0)
    """CPU to copy a sample into another shard."""
    score_ms: float = Field(default=0.54, gt=0)
    """CPU to score a picture of 256 px by caption, image and placeholder (docs/signals.md: 48,932,
    2,084 and 27,255 samples a second, each alone)."""
    encode_core_gflops: float = Field(default=280.0, gt=0)
    """What a core makes of an encoder: ViT-B/32 in bf16, 32 ms a picture (docs/embed.md)."""
    encode_mfu: float = Field(default=0.15, gt=0, le=1)
    """The share of a GPU's peak that an encoder reaches: 312 pictures/s of ViT-L/14 and 1,800 to
    2,500 of ViT-B/32 on an A100, as LAION and clip-retrieval report, are 18% and 8 to 12%
    (`SOURCES` of benchmarks/plan.py)."""
    matmul_core_gflops: float = Field(default=60.0, gt=0)
    """float32 products on one core, which assigning vectors to lists is made of. An assumption."""
    train_core_gflops: float = Field(default=60.0, gt=0)
    """What a core makes of training: the demo's, on two cores (docs/plan.md)."""
    train_mfu: float = Field(default=0.28, gt=0, le=1)
    """The share of a GPU's peak that training reaches: what MosaicML's 290 pictures/s of SD2 at 512
    px on 8 A100 come to (`SOURCES` of benchmarks/plan.py)."""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """The share of the backward pass that communication is hidden behind; 0 is the safe side."""
    machine: str = "defaults"
    """Where they were measured."""


def read_rates(url: str) -> Rates:
    """Raises DamagedError for what is no such file, ConfigError where there is none."""
    try:
        return read_record(url, Rates)
    except FileNotFoundError:
        raise ConfigError(
            f"--rates {url}: no such file; write one with carrara plan --calibrate --rates {url}"
        ) from None
