"""Every score of a set of pictures against a corpus, over one extractor's features.

frechet              Frechet distance, FID where the features are Inception's; less is better
kid  mmd             kernel distances; mmd is CMMD's estimate, for unit rows only; less is better
precision  recall    what is drawn looks real; what is real is drawn
clip_similarity      cosine of picture and caption
retrieval_at_1       share of pictures nearer to their own caption than to any other
nearest_distance     mean distance to the nearest picture of the corpus
near_share           share of pictures nearer to one than 95 of 100 real ones are to another
"""

import torch
from torch import Tensor

from infra.progress import track
from training.evaluating.alignment import is_own_caption_first, similarities
from training.evaluating.bootstrap import Score, mean_score, resamples
from training.evaluating.extractors import kid_gamma
from training.evaluating.features import Features
from training.evaluating.frechet import frechet_score
from training.evaluating.kernels import CMMD_SCALE, gaussian, mmd_score, polynomial
from training.evaluating.manifold import precision_score, recall_score
from training.evaluating.nearest import near_distance, nearest, nearest_other

Scores = dict[str, Score]


class Judge:
    """Scores sets against the same pictures of a corpus, by one extractor.

    `real` is what sets are compared with, `corpus` among what nearest pictures are looked for.
    """

    def __init__(
        self,
        extractor: str,
        real: Features,
        corpus: Features,
        *,
        num_resamples: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.extractor, self.real, self.corpus = extractor, real, corpus
        self._num_resamples, self._seed, self._device = num_resamples, seed, device
        with track("evaluate: nearest of the corpus", len(corpus.images), "pictures") as bar:
            self._own = nearest_other(corpus.images.to(device), bar.advance)
        self._near = near_distance(self._own)

    def scores(self, drawn: Features, *, is_of_corpus: bool = False) -> Scores:
        """Alignment only where every picture has a caption, and captions a place. A picture
        `is_of_corpus` is as near to it as to the nearest other one."""
        x = drawn.images.to(self._device).double()
        y = self.real.images.to(self._device).double()
        w_x = resamples(len(x), self._num_resamples, self._seed).to(self._device)
        w_y = resamples(len(y), self._num_resamples, self._seed + 1).to(self._device)
        kid = polynomial(kid_gamma(self.extractor))
        with track("evaluate: scores", len(w_x), "resamples") as bar:
            found = {"frechet": frechet_score(x, y, (w_x, w_y), bar.advance)}
        found |= {
            "kid": mmd_score(x, y, kid, (w_x, w_y)),
            "precision": precision_score(x, y, w_x),
            "recall": recall_score(x, y, w_y),
        }
        if self.real.texts is not None:  # unit rows
            found["mmd"] = mmd_score(x, y, gaussian(), (w_x, w_y), CMMD_SCALE)
        distances = self._own_nearest(drawn) if is_of_corpus else self._nearest(drawn)
        found["nearest_distance"] = mean_score(distances, w_x)
        found["near_share"] = mean_score(distances < self._near, w_x)
        if drawn.texts is not None:
            texts = drawn.texts.to(self._device).double()
            captions = [caption or "" for caption in drawn.captions]
            found["clip_similarity"] = mean_score(similarities(x, texts), w_x)
            found["retrieval_at_1"] = mean_score(is_own_caption_first(x, texts, captions), w_x)
        return found

    def nearest_pairs(self, drawn: Features, num: int) -> list[tuple[str, str]]:
        """The drawn pictures nearest to any of the corpus: their names, and whose."""
        distances, rows = nearest(
            drawn.images.to(self._device), self.corpus.images.to(self._device)
        )
        order = distances.argsort()[:num].tolist()
        return [(drawn.names[i], self.corpus.names[int(rows[i])]) for i in order]

    def _nearest(self, drawn: Features) -> Tensor:
        """From each picture to the nearest of the corpus, `[n]`."""
        return nearest(drawn.images.to(self._device), self.corpus.images.to(self._device))[0]

    def _own_nearest(self, drawn: Features) -> Tensor:
        place = {name: i for i, name in enumerate(self.corpus.names)}
        if not all(name in place for name in drawn.names):  # nearest ones are looked for elsewhere
            return self._nearest(drawn)
        return self._own[[place[name] for name in drawn.names]]
