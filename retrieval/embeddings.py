"""Embeddings on disk: clip-retrieval's layout, with a manifest that says what they are of.

    ROOT/embeddings/<encoder>/img_emb/img_emb_{i}.npy        [n, d] float16, unit rows
                              text_emb/text_emb_{i}.npy      [n, d] float16, unit rows
                              metadata/metadata_{i}.parquet  uid, image_path (the key), caption, url
                              manifest.json                  written last

`i` is the shard's number; the rows of its three files belong together. Imports no torch.
"""

EMBEDDED_ENCODER = "Carrara-S/emoji_clipart"
"""Ships with the package: small, for the demo and the tests."""
DEFAULT_ENCODER = "ViT-B-32/laion2b_s34b_b79k"
