import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra.cluster import Workers
from retrieval import embed, index
from retrieval.asking.pages import read_pictures
from retrieval.search import Retriever


def test_pictures_are_kept_small(tiny_encoder: str, tmp_path: Path) -> None:
    root = str(tmp_path)
    buffer = io.BytesIO()
    Image.effect_noise((900, 600), 80).convert("RGB").save(buffer, "JPEG")
    samples = [
        made_sample(f"{n:09d}", f"https://example.org/{n}.jpg", f"noise {n}", buffer.getvalue())
        for n in range(40)
    ]
    write_made_manifest(root, [write_made_shard(root, "00000", samples)])
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=Workers(local=True)))
    index.run(index.Config(root=root))
    retriever = Retriever.open(root)
    pictures = read_pictures(retriever, retriever.hits(np.arange(40), np.ones(40)))
    assert pictures.keys() == {sample.uid for sample in samples}
    assert {max(picture.size) for picture in pictures.values()} == {256}
