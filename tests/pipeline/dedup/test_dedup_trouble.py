"""A full disk for what `dedup` lays aside: what it says, and what it leaves."""

from pathlib import Path

from pipeline.corpus import list_signals
from tests.pipeline import full_disk
from tests.pipeline.dedup.planted import HERE

ENCODER = "Carrara-S/emoji_clipart"


def test_a_full_disk_for_the_embeddings_is_named(small_corpus: str, tmp_path: Path) -> None:
    """They are written through mapped memory, where a disk without room ends the process."""
    from retrieval import embed

    embed.run(embed.Config(root=small_corpus, encoder=ENCODER, device="cpu", workers=HERE))
    spooled = ("--methods", "semantic", "--spool", str(tmp_path / "disk"), "--local")
    attempts = full_disk.fill(tmp_path, 8 << 10, ["dedup", small_corpus, *spooled])
    assert len(attempts) > 1
    full_disk.check_told_and_kept(attempts, {})
    assert "duplicates" in list_signals(small_corpus)
