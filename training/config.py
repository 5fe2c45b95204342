"""The settings of a training run. No torch here: the command line imports this for --help."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field, model_validator

from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, Settings, StageConfig

_MANY = Parameter(consume_multiple=True)
"""On the command line: --mix A B."""


class UNetConfig(Settings):
    """The denoiser's shape. The defaults are the paper's CIFAR-10 network (Ho et al. 2020,
    appendix B) with text attention and without dropout."""

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
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside the residual blocks. The paper's 0.1 is for many epochs of a small corpus; it
    costs a run that sees its pictures a few times more loss than it saves."""
    patch_size: int = Field(1, ge=1)
    """Pixels a side folded into channels at the door (space to depth): 2 makes a step about four
    times cheaper, at some cost in sharpness."""


class UViTConfig(Settings):
    """The denoiser's shape: a transformer between convolutions (Hoogeboom et al. 2023, "simple
    diffusion", section 3.3). The defaults are size S."""

    patch_size: int = Field(2, ge=1)
    """Pixels a side folded into channels at the door (space to depth)."""
    channels: tuple[int, ...] = (128,)
    """Channels of every level of convolutions; after each the resolution is halved."""
    num_res_blocks: int = Field(2, ge=1)
    """Residual blocks a level, on the way down and on the way up."""
    width: int = Field(384, ge=8)
    """Channels of the transformer, which works at the lowest resolution."""
    num_layers: int = Field(12, ge=1)
    """Its layers."""
    head_width: int = Field(64, ge=4, multiple_of=4)
    """Channels of an attention head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside residual blocks and layers."""


class TextConfig(Settings):
    """Who reads the captions: the frozen tower of `encoder`, or a transformer trained along."""

    trained: bool = False
    """Train a small text transformer with the network, on open_clip's tokens, in place of the
    frozen tower; `encoder` is then not needed for training."""
    width: int = Field(256, ge=8)
    """Its channels."""
    num_layers: int = Field(4, ge=1)
    """Its layers."""
    num_heads: int = Field(4, ge=1)
    """Heads of its attention."""
    context_length: int = Field(64, ge=3)
    """Tokens of a caption that it reads at most, start and end among them."""


class SpaceConfig(Settings):
    """What the network draws in: pixels, pixels given a small picture, or an autoencoder's
    latents."""

    upscale_from: int | None = Field(None, ge=4)
    """Side in pixels of a smaller picture that is given: trains the super-resolution stage from it
    to `image_size`."""
    max_augmentation: float = Field(0.5, ge=0, le=1)
    """The small pictures are noised up to this share of the schedule, at random, so that the stage
    forgives the mistakes of the one before (Ho et al. 2021, "Cascaded Diffusion Models",
    section 4)."""
    autoencoder: str | None = None
    """Draw in the latents of this autoencoder: a folder, or a name on the Hugging Face hub, that
    diffusers' AutoencoderKL loads."""


class WatchConfig(Settings):
    """What is shown of a run on its way; nothing here changes what it learns."""

    sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics and grids go beside RUN's own files; each is a package of its own to install.
    wandb and mlflow are set up by their own environment variables (WANDB_MODE=offline,
    MLFLOW_TRACKING_URI)."""
    project: str = "carrara"
    """The project of wandb, the experiment of mlflow."""
    held_out_every: int = Field(500, ge=0)
    """Steps between looks at the loss on held-out pictures, by the averaged weights; 0: none."""
    held_out_pictures: int = Field(256, ge=1)
    """How many held-out pictures are looked at, at most."""
    grid_every: int = Field(2000, ge=0)
    """Steps between grids of samples in RUN/samples; 0: none."""
    grid_captions: tuple[str, ...] = ()
    """Captions to draw beside the corpus's own: such as no picture of it has."""
    corpus_captions: int = Field(2, ge=0)
    """How many captions of training pictures are drawn, and as many of held-out pictures."""
    grid_pictures: int = Field(4, ge=1)
    """Pictures a caption."""
    grid_steps: int = Field(50, ge=1)
    """Sampling steps of the grids."""
    sampler: str = "ddim"
    """The sampler of the grids."""
    guidance_scale: float = Field(3.0, ge=0)
    """How far the caption pulls in the grids."""
    nearest_in: Place | None = None
    """The corpus in whose index, or embeddings, the nearest pictures are looked up; none: the one
    trained on."""
    worker_hour_dollars: float = Field(0.0, ge=0)
    """What a worker costs an hour; with it the log has dollars a million images."""
    peak_tflops: float | None = Field(None, gt=0)
    """What a worker's device computes at its best, for MFU; none: by the maker's figures, where
    they are known (training/watching/peak.py)."""


class ParallelConfig(Settings):
    """How training is spread over the workers; the maths differs by rounding at most."""

    mode: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every worker holds all weights. fsdp: weights, averages and moments lie in shards, one a
    worker, for networks that don't fit otherwise. hsdp: in shards within groups of workers."""
    shard_workers: int = Field(8, ge=1)
    """Workers of a group that share one copy of the state in hsdp: those of one machine."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with as few workers as this while the cluster has no more, and with
    workers.num_workers again when it has; none: wait for all of them."""


class DataConfig(Settings):
    """How pictures are shuffled and shaped."""

    shuffle_samples: int = Field(8192, ge=1)
    """Samples that are shuffled among each other at a time, over all workers; these are held in
    memory. The shards that they come from are drawn from all of the corpus."""
    crop: Literal["centre", "random"] = "centre"
    """Which part of a picture that is no square is taken."""
    max_aspect_ratio: float = Field(1.0, ge=1)
    """Above 1, pictures are trained in the shape nearest to their own, up to this ratio of its
    sides and about image_size x image_size in area; a step has one shape. 1: squares alone."""
    side_multiple: int = Field(16, ge=1)
    """The sides of those shapes are multiples of this, so that the network can halve them."""


class LoadingConfig(Settings):
    """Who reads and decodes pictures; all ways give the same batches."""

    decode_in: Literal["threads", "processes", "ray"] = "threads"
    """Threads of the training process; processes beside it; or Ray actors, also on other
    machines."""
    num_decoders: int = Field(0, ge=0)
    """How many of these a worker has; 0: as many as it has CPUs, and two at least."""
    num_readers: int = Field(16, ge=1)
    """Reads of shards that a worker has under way at once."""
    on_device: bool = False
    """Decode the whole corpus at the start and keep it as uint8 on the device that trains."""


class Config(StageConfig):
    """Train a text-conditioned DDPM on a corpus."""

    root: Annotated[Place, POSITIONAL]
    """The corpus to train on."""
    run: Annotated[Place, POSITIONAL]
    """The folder or URL for checkpoints and logs; an unfinished run there is continued."""

    selection: str | None = None
    """Train only on what this selection keeps, by its weights; none: on every sample."""
    mix: Annotated[tuple[Place, ...], _MANY, EXECUTION_ONLY] = ()
    """Further corpora, mixed in."""
    mix_shares: Annotated[tuple[float, ...], _MANY] = ()
    """The share of each of `mix` in every batch; ROOT has the rest. None: by their samples."""
    mix_selections: Annotated[tuple[str, ...], _MANY] = ()
    """The selection to keep to in each of `mix`; "" where all of it is wanted."""
    held_out: float = Field(0.01, ge=0, le=0.5)
    """The share of samples, chosen by their uids, that is kept from training to be looked at; see
    `watch`."""
    encoder: str = "ViT-B-32/laion2b_s34b_b79k"
    """The open_clip model whose frozen text tower reads the captions."""
    image_size: int = Field(32, ge=8)
    """Side in pixels: pictures are resized and centre-cropped to it."""
    horizontal_flip: bool = False
    """Mirror half of the pictures, at random; not where captions speak of left and right."""
    data: DataConfig = DataConfig()
    """How pictures are shuffled and shaped."""
    space: SpaceConfig = SpaceConfig()
    """What the network draws in."""

    network: Literal["unet", "uvit"] = "unet"
    """The denoiser: the paper's U-Net, or a transformer between convolutions."""
    size: Literal["S", "B", "L", "XL"] | None = None
    """A shape by name (docs/networks.md), on top of which the settings below count that are given;
    none: those alone."""
    unet: UNetConfig = UNetConfig()
    """The shape of `unet`."""
    uvit: UViTConfig = UViTConfig()
    """The shape of `uvit`."""
    text: TextConfig = TextConfig()
    """Who reads the captions."""

    schedule: str = "cosine"
    """The noise schedule: linear or cosine."""
    num_timesteps: int = Field(1000, ge=1)
    """T, the number of noise levels."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is pure noise, which lets a model draw very dark
    and very bright pictures; not with prediction eps."""
    prediction: Literal["eps", "v", "x_0"] = "v"
    """What the network puts out: eps as the paper's, or v or x_0, from which eps follows. v gets
    colours right after far fewer steps."""
    weighting: Literal["uniform", "v", "x_0", "min-snr"] = "min-snr"
    """How errors at different t weigh: uniform is the paper's, all errors in eps alike; v and x_0:
    all errors in v or x_0 alike; min-snr: of Hang et al. 2023. The log's loss is always the
    paper's."""
    min_snr_gamma: float = Field(5.0, gt=0)
    """Where min-snr caps the weight of nearly clean pictures."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """The share of captions hidden from the network, which classifier-free guidance needs."""

    num_steps: int = Field(100_000, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(128, ge=1)
    """Pictures a step over all workers, however many there are; at least one for each."""
    learning_rate: float = Field(2e-4, gt=0)
    """AdamW's learning rate after the warm-up."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the learning rate rises from zero; none: 500, at most a tenth of all."""
    decay_share: float = Field(0.3, ge=0, le=1)
    """The last share of the steps, over which the learning rate falls to zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay; 0 makes it Adam."""
    adam_betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates of the moments. A second moment of shorter memory than the usual 0.999
    follows short runs better."""
    clip_norm: float = Field(1.0, ge=0)
    """The gradient's norm is clipped to this; 0: never."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the average of the weights that sampling uses."""
    ema_warmup: bool = True
    """Let that decay rise to its value over the first steps, so that the random initial weights
    don't weigh on a short run."""
    init_from: str | None = None
    """A folder that `carrara export` wrote, whose weights to start from; none: random ones."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, order of samples, noise, timesteps and dropped captions."""

    checkpoint_every: Annotated[int, EXECUTION_ONLY] = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep_last: Annotated[int, EXECUTION_ONLY] = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    keep_every: Annotated[int, EXECUTION_ONLY] = Field(0, ge=0)
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    checkpoint_patience_s: Annotated[float, EXECUTION_ONLY] = Field(0.0, ge=0)
    """Seconds that the step waits where a checkpoint is due and the one before is still being
    written; after them it is left out."""
    log_every: int = Field(20, ge=1)
    """Steps averaged in one line of metrics.jsonl."""

    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """How many processes train, and on what. `local` runs the loop in this process."""
    parallel: Annotated[ParallelConfig, EXECUTION_ONLY] = ParallelConfig()
    """How the network is spread over them."""
    threads_per_worker: Annotated[int, EXECUTION_ONLY] = Field(0, ge=0)
    """Torch's threads in a worker on the CPU; 0: as many as it has CPUs."""
    max_failures: Annotated[int, EXECUTION_ONLY] = Field(3, ge=0)
    """How often lost workers are replaced before the run gives up."""
    max_batch_per_worker: Annotated[int, EXECUTION_ONLY] = Field(512, ge=1)
    """Pictures in one forward pass; a larger share of the batch is split and accumulated."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], EXECUTION_ONLY] = "auto"
    """Arithmetic of the network; auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: Annotated[Literal["auto", "yes", "no"], EXECUTION_ONLY] = "auto"
    """Compile the network by torch.compile, which takes a minute or more at the start of every
    worker; auto: on a GPU."""
    checkpoint_activations: Annotated[bool, EXECUTION_ONLY] = False
    """Compute activations a second time on the way back where they would not fit in memory: about
    a third more work, the same gradients."""
    shuffle_shards: int = Field(8, ge=1)
    """Neighbours in a shard, up to 64, stay together; they are shuffled among so many shards."""
    cache_size_mb: Annotated[int, EXECUTION_ONLY] = Field(1024, ge=1)
    """Memory that a worker spends on pictures read ahead and kept for later epochs."""
    loading: Annotated[LoadingConfig, EXECUTION_ONLY] = LoadingConfig()
    """Who reads and decodes."""
    text_cache_captions: int = Field(50_000, ge=0)
    """Corpora with at most this many samples have their captions encoded once, at the start."""
    watch: Annotated[WatchConfig, EXECUTION_ONLY] = WatchConfig()
    """Logs, held-out loss and grids on the way."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Remove the run that RUN holds and start again."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, settings: Any) -> Any:
        """The settings of a named size stand beneath those given, so that what is recorded says
        all."""
        return with_size(settings) if isinstance(settings, dict) else settings


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "unet": {
        "S": {"channels": 64, "num_heads": 4},
        "B": {"channels": 128, "num_heads": 8},
        "L": {"channels": 192, "num_heads": 12},
        "XL": {"channels": 256, "num_heads": 16},
    },
    "uvit": {
        "S": {"channels": (128,), "width": 384, "num_layers": 12},
        "B": {"channels": (256,), "width": 768, "num_layers": 16},
        "L": {"channels": (384,), "width": 1152, "num_layers": 20},
        "XL": {"channels": (512,), "width": 1536, "num_layers": 28},
    },
}
"""By network and name."""

OF_EVERY_UNET = {"channel_mults": (1, 2, 4, 4), "attention_resolutions": (16, 8)}
"""What the sizes of `unet` share: for 64 pixels, where the paper's default is for 32."""


def with_size(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with `size`, if one is named, written out in the table of its network."""
    network, size = settings.get("network", "unet"), settings.get("size")
    sizes = SIZES.get(network, {})
    if size not in sizes:
        return settings  # none, or a name that validation will refuse
    given = settings.get(network, {})
    if isinstance(given, Settings):
        given = given.model_dump(exclude_unset=True)
    shared = OF_EVERY_UNET if network == "unet" else {}
    return settings | {network: shared | sizes[size] | given}
