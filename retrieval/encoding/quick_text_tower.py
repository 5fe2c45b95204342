"""CLIP's text tower in numpy: a query's few words encoded before torch would have been imported.

Reads   open_clip_config.json and the weights beside it (safetensors), open_clip's vocabulary

torch, torchvision and timm take some four seconds to import; a caption takes milliseconds. So the
plain transformer of Radford et al. 2021 (section 2.4) is computed here, for encoders that lie in a
folder: the shipped one, the user's own and the hub's. All others take `encoder.py`, and a
test holds the two against each other.

Shapes: L tokens, w the width, h heads, d the width of the shared space.
"""

import gzip
import html
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from retrieval.encoding.weights import CONFIG_NAME, find_weights, sha256

PLAIN_SETTINGS = {"context_length", "vocab_size", "width", "heads", "layers"}
"""Of text_cfg: a tower with any other is not computed here."""
QUICK_GELU = 1.702
LAYER_NORM_EPS = 1e-5
NUM_MERGES = 49152 - 256 - 2
"""Of the vocabulary's file, as open_clip's tokenizer.py takes them."""
# The pattern is open_clip's.
WORDS = r"""<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"""

_erf = np.frompyfunc(math.erf, 1, 1)


def quick_text_tower(name: str) -> "QuickTextTower | None":
    """None for an encoder that this can't compute; raises InputError where weights are missing."""
    source = find_weights(name)
    if not source.in_folder or source.path.suffix != ".safetensors":
        return None
    config_path = source.path.with_name(CONFIG_NAME)
    if not config_path.is_file():
        return None
    model: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))["model_cfg"]
    is_plain = model["text_cfg"].keys() == PLAIN_SETTINGS and model.keys() <= {
        *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    }
    return QuickTextTower(source.path, model) if is_plain else None


class QuickTextTower:
    """Words in, unit vectors out."""

    def __init__(self, weights: Path, model: Mapping[str, Any]) -> None:
        self._path = weights
        text = model["text_cfg"]
        self._num_layers, self._num_heads = text["layers"], text["heads"]
        self._context_length = text["context_length"]
        self._is_quick_gelu = bool(model.get("quick_gelu"))
        self._tokenizer = _Tokenizer()

    @cached_property
    def weights_digest(self) -> str:
        """sha256 of the weights file, hex."""
        return sha256(self._path)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32, unit rows; texts beyond `context_length` tokens are cut there."""
        rows = np.stack([self._encode(self._tokens(text)) for text in texts])
        units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return units

    def _tokens(self, text: str) -> list[int]:
        """Start, words, end; nothing follows the end, for in a causal tower it would not count."""
        words = [*self._tokenizer.tokens(text)[: self._context_length - 2], self._tokenizer.end]
        # The first end is the text's, should it name its own.
        return [self._tokenizer.start, *words[: words.index(self._tokenizer.end) + 1]]

    @cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        tensors = load_file(self._path)
        return {
            name: value.astype(np.float32)
            for name, value in tensors.items()
            if not name.startswith("visual.") and name != "token_embedding.weight"
        } | {"token_embedding.weight": tensors["token_embedding.weight"]}

    def _encode(self, tokens: list[int]) -> np.ndarray:
        """[d], not normalised."""
        weights = self._weights
        states = weights["token_embedding.weight"][tokens].astype(np.float32)
        states += weights["positional_embedding"][: len(tokens)]
        for layer in range(self._num_layers):
            at = f"transformer.resblocks.{layer}"
            states += self._attention(at, self._norm(f"{at}.ln_1", states))
            hidden = self._linear(f"{at}.mlp.c_fc", self._norm(f"{at}.ln_2", states))
            states += self._linear(f"{at}.mlp.c_proj", self._gelu(hidden))
        # The end's state is the text's.
        last: np.ndarray = self._norm("ln_final", states[-1:])
        features: np.ndarray = last[0] @ weights["text_projection"]
        return features

    def _attention(self, at: str, states: np.ndarray) -> np.ndarray:
        """Each token sees itself and those before it."""
        num_tokens, width = states.shape
        projected = states @ self._weights[f"{at}.attn.in_proj_weight"].T
        projected += self._weights[f"{at}.attn.in_proj_bias"]
        # [L, 3w] -> three of [h, L, w / h]
        query, key, value = projected.reshape(num_tokens, 3, self._num_heads, -1).transpose(
            1, 2, 0, 3
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(width // self._num_heads)  # [h, L, L]
        scores[:, np.triu(np.ones((num_tokens, num_tokens), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ value).transpose(1, 0, 2).reshape(num_tokens, width)
        return self._linear(f"{at}.attn.out_proj", mixed)

    def _linear(self, at: str, states: np.ndarray) -> np.ndarray:
        result: np.ndarray = states @ self._weights[f"{at}.weight"].T + self._weights[f"{at}.bias"]
        return result

    def _norm(self, at: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
        scaled: np.ndarray = centred / scale
        result: np.ndarray = scaled * self._weights[f"{at}.weight"] + self._weights[f"{at}.bias"]
        return result

    def _gelu(self, states: np.ndarray) -> np.ndarray:
        if self._is_quick_gelu:
            below: np.ndarray = 1 / (1 + np.exp(-QUICK_GELU * states))
        else:
            below = (1 + np.asarray(_erf(states / math.sqrt(2)), np.float32)) / 2
        result: np.ndarray = states * below
        return result


class _Tokenizer:
    """CLIP's byte-pair encoding, from the vocabulary in open_clip, merged by `tokenizers`."""

    def __init__(self) -> None:
        import regex
        from tokenizers.models import BPE

        spec = importlib.util.find_spec("open_clip")
        assert spec is not None
        assert spec.origin is not None
        packed = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
        lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
        merges = [(first, second) for first, second in map(str.split, lines)]
        self._letters = _byte_letters()
        letters = list(self._letters.values())
        pieces = [*letters, *(f"{one}</w>" for one in letters), *map("".join, merges)]
        self._merging = BPE(
            {piece: number for number, piece in enumerate(pieces)},
            merges,
            end_of_word_suffix="</w>",
        )
        self.start, self.end = len(pieces), len(pieces) + 1
        self._marks = {"<start_of_text>": self.start, "<end_of_text>": self.end}
        self._words = regex.compile(WORDS)

    def tokens(self, text: str) -> list[int]:
        found: list[int] = []
        for word in self._words.findall(_cleaned(text)):
            if word in self._marks:
                found.append(self._marks[word])
            else:
                spelt = "".join(self._letters[byte] for byte in word.encode("utf-8"))
                found += [token.id for token in self._merging.tokenize(spelt)]
        return found


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of the vocabulary (open_clip's own)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def _cleaned(text: str) -> str:
    """As open_clip's tokenizer cleans what it reads."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
