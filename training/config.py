"""The settings of a training run. No torch here: the command line imports this for --help."""

from typing import Annotated, Literal

from pydantic import Field

from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, Settings, StageConfig


class UNetConfig(Settings):
    """The denoiser's shape. The defaults are the paper's CIFAR-10 network (Ho et al. 2020,
    appendix B) with text attention."""

    channels: int = Field(128, ge=8, multiple_of=8)
    """Channels at the highest resolution."""
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of every level, as multiples of `channels`; each level halves the resolution."""
    num_res_blocks: int = Field(2, ge=1)
    """Residual blocks a level, on the way down."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Sides in pixels at which image attends to itself and to the text; the lowest always does."""
    num_heads: int = Field(4, ge=1)
    """Heads of every attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the residual blocks."""
    patch_size: int = Field(1, ge=1)
    """Pixels a side folded into channels at the door (space to depth): 2 makes a step about four
    times cheaper, at some cost in sharpness."""


class Config(StageConfig):
    """Train a text-conditioned DDPM on a corpus."""

    root: Annotated[Place, POSITIONAL]
    """The corpus to train on."""
    run: Annotated[Place, POSITIONAL]
    """The folder or URL for checkpoints and logs; an unfinished run there is continued."""

    selection: str | None = None
    """Train only on what this selection keeps; none: on every sample."""
    encoder: str = "ViT-B-32/laion2b_s34b_b79k"
    """The open_clip model whose frozen text tower reads the captions."""
    image_size: int = Field(32, ge=8)
    """Side in pixels: pictures are resized and centre-cropped to it."""
    horizontal_flip: bool = False
    """Mirror half of the pictures, at random; not where captions speak of left and right."""
    unet: UNetConfig = UNetConfig()
    """The denoiser."""

    schedule: str = "cosine"
    """The noise schedule: linear or cosine."""
    num_timesteps: int = Field(1000, ge=1)
    """T, the number of noise levels."""
    prediction: Literal["eps", "v"] = "eps"
    """What the network puts out: eps as the paper's, or v, from which eps follows. The loss is the
    paper's either way, the error in eps; v gets colours right after far fewer steps."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """The share of captions hidden from the network, which classifier-free guidance needs."""

    num_steps: int = Field(100_000, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(128, ge=1)
    """Pictures a step, over all workers; it must be a multiple of their number."""
    learning_rate: float = Field(2e-4, gt=0)
    """AdamW's learning rate after the warm-up."""
    warmup_steps: int = Field(500, ge=0)
    """Steps over which the learning rate rises from zero."""
    decay_share: float = Field(0.3, ge=0, le=1)
    """The last share of the steps, over which the learning rate falls to zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    clip_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the average of the weights that sampling uses."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, order of samples, noise, timesteps and dropped captions."""

    checkpoint_every: Annotated[int, EXECUTION_ONLY] = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep_last: Annotated[int, EXECUTION_ONLY] = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    keep_every: Annotated[int, EXECUTION_ONLY] = Field(0, ge=0)
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    log_every: int = Field(20, ge=1)
    """Steps averaged in one line of metrics.jsonl."""

    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """How many processes train, and on what. `local` runs the loop in this process."""
    threads_per_worker: Annotated[int, EXECUTION_ONLY] = Field(0, ge=0)
    """Torch's threads in a worker on the CPU; 0: as many as it has CPUs."""
    max_failures: Annotated[int, EXECUTION_ONLY] = Field(3, ge=0)
    """How often lost workers are replaced before the run gives up."""
    max_batch_per_worker: Annotated[int, EXECUTION_ONLY] = Field(512, ge=1)
    """Pictures in one forward pass; a larger share of the batch is split and accumulated."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], EXECUTION_ONLY] = "auto"
    """Arithmetic of the network; auto: bfloat16 on a GPU, float32 on a CPU."""
    shuffle_shards: int = Field(8, ge=1)
    """Samples are shuffled among this many shards at a time."""
    cache_size_mb: Annotated[int, EXECUTION_ONLY] = Field(1024, ge=1)
    """Memory a worker spends on shards it has read."""
    text_cache_captions: int = Field(50_000, ge=0)
    """Corpora with at most this many samples have their captions encoded once, at the start."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Remove the run that RUN holds and start again."""
