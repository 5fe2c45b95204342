"""What a RUN is: the file that says which configuration and corpus it belongs to, and its logs.

RUN/run.json        configuration, digests of corpus, encoder and autoencoder; written first
RUN/config.toml     the same configuration, to read and to use again
RUN/metrics.jsonl   one line every few steps: step, loss, grad_norm, lr, images_per_s, ...
RUN/events.jsonl    starts, resumes, damaged checkpoints
"""

import tomli_w
from pydantic import BaseModel, ConfigDict

from infra import records, storage
from infra.errors import ConflictError, InputError
from infra.stamp import differences
from training.config import Config
from training.streaming.catalogue import only_taken_down

SCHEMA_VERSION = 1


class RunRecord(BaseModel):
    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    config: Config
    corpus_digest: str
    """Of ROOT as it was when the run began."""
    mix_digests: tuple[str, ...] = ()
    """Of the corpora mixed in."""
    encoder_digest: str
    """sha256 of the encoder's weights."""
    autoencoder_digest: str = ""
    """sha256 of the autoencoder in whose latents is drawn; "": none, or a run older than this."""

    @property
    def config_digest(self) -> str:
        return self.config.digest()


def record_url(run: str) -> str:
    return storage.join(run, "run.json")


def read_record(run: str) -> RunRecord:
    """Raises InputError where no run is."""
    try:
        return records.read_record(record_url(run), RunRecord)
    except FileNotFoundError:
        raise InputError(
            f"{run}: no training run here (no run.json); start one with `carrara train ROOT {run}`"
        ) from None


def holds(record: RunRecord) -> bool:
    """Whether RUN holds this run, to be continued, or else is free; raises ConflictError naming
    what differs if it is another's."""
    run = record.config.run
    if storage.exists(record_url(run)):
        if not record.config.overwrite:
            _check_same(read_record(run), record)
        return not record.config.overwrite
    if names := storage.list_names(run):
        raise ConflictError(
            f"{run}: not empty and not a training run (it holds {names[0]!r}); give another place"
        )
    return False


def begin(record: RunRecord) -> None:
    """Make RUN this record's; whatever run is there is removed."""
    run = record.config.run
    storage.remove(run)
    settings = record.config.model_dump(mode="json", exclude_none=True, exclude={"overwrite"})
    storage.publish_text(storage.join(run, "config.toml"), tomli_w.dumps({"train": settings}))
    storage.publish_text(record_url(run), record.model_dump_json(indent=2) + "\n")


def continuing(record: RunRecord) -> RunRecord:
    """The run that RUN holds, as this command wants it executed. Its corpora may have lost samples
    to takedowns since it began; their order follows from what they were then."""
    there = read_record(record.config.run)
    digests = {"corpus_digest": there.corpus_digest, "mix_digests": there.mix_digests}
    return record.model_copy(update=digests)


def _is_of_same_corpus(there: RunRecord, wanted: RunRecord) -> bool:
    """But for samples that were taken down."""
    before = (there.corpus_digest, *there.mix_digests)
    now = (wanted.corpus_digest, *wanted.mix_digests)
    roots = (wanted.config.root, *wanted.config.mix)
    return len(before) == len(now) and all(
        old == new or only_taken_down(root, old)
        for old, new, root in zip(before, now, roots, strict=True)
    )


def _check_same(there: RunRecord, wanted: RunRecord) -> None:
    run = wanted.config.run
    remedy = "give another RUN, or --overwrite to remove that one"
    if not _is_of_same_corpus(there, wanted):
        raise ConflictError(
            f"{run}: a run on another corpus ({there.config.root}, digest {there.corpus_digest}; "
            f"{wanted.config.root} has {wanted.corpus_digest}); {remedy}"
        )
    if different := differences(there.config.identity(), wanted.config.identity()):
        raise ConflictError(f"{run}: a run of other settings ({'; '.join(different)}); {remedy}")
    for kind, name, then, now in (
        ("encoder", there.config.encoder, there.encoder_digest, wanted.encoder_digest),
        (
            *("autoencoder", there.config.space.autoencoder),
            *(there.autoencoder_digest or wanted.autoencoder_digest, wanted.autoencoder_digest),
        ),
    ):
        if then != now:
            raise ConflictError(
                f"{run}: a run with other weights of {kind} {name!r} (sha256 {then[:16]} there, "
                f"{now[:16]} now); {remedy}"
            )
