"""For `carrara doctor`: is the encoder at hand, or reachable, and does it encode here?"""

import time
from collections.abc import Iterator

from infra.checks.finding import Finding, Subject, broken, ok
from infra.errors import CarraraError

OTHERWISE = "fetch its weights again, or name another --encoder"


def check(subject: Subject) -> Iterator[Finding]:
    import numpy as np
    import torch

    from retrieval.encoding.encoder import load_encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    try:
        encoder = load_encoder(subject.encoder, device)
    except CarraraError as error:
        what, _, advice = str(error).partition("; ")
        yield broken("encoder", what, advice or OTHERWISE)
        return
    rows = encoder.encode_texts(["a cat", "a dog"])
    norms = np.linalg.norm(rows, axis=1)
    found = (
        f"{subject.encoder} on {device}, {encoder.dim} wide, {time.perf_counter() - start:.1f} s"
    )
    if not np.isfinite(rows).all() or abs(norms - 1).max() > 1e-3:
        advice = f"its weights or {device} are damaged: download them again, try --encoder another"
        yield broken("encoder", f"{found}: vectors that are not of length 1 ({norms})", advice)
    else:
        yield ok("encoder", found)
