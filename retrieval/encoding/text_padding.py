"""Captions encoded without their padding, by towers that answer the same without it.

A caption has some 10 to 20 tokens; CLIP's tower computes 77 for each, and throws what follows the
end away. What a causal tower makes of a token depends on none that follow, and towers of the
transformers library mask padding out: there the tokens past the longest caption's end are left
out. Any other tower sees all.

Shapes: n texts, L tokens, l <= L the longest that is needed, d the width of the shared space.
"""

from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import text_global_pool


def lengths_needed(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[n, L] -> [n]: how many of each text's tokens the tower has to see."""
    num_texts, num_tokens = tokens.shape
    lengths: torch.Tensor
    if isinstance(tower, HFTextEncoder):
        places = torch.arange(1, num_tokens + 1, device=tokens.device)
        lengths = (places * (tokens != tower.config.pad_token_id)).amax(dim=1)
        return lengths
    if _is_causal(tower):
        pooled, end_id = _pooling(tower)
        if pooled == "argmax":
            return tokens.argmax(dim=1) + 1
        if pooled == "eos":
            assert end_id is not None
            lengths = tokens.eq(end_id).int().argmax(dim=1) + 1
            return lengths
    return torch.full((num_texts,), num_tokens, device=tokens.device)


def encode_tokens(model: Any, tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[n, l] -> [n, d], not normalised; the same as of all [n, L]."""
    num_tokens = tokens.shape[1]
    features: torch.Tensor
    if isinstance(tower, HFTextEncoder) or num_tokens == model.context_length:
        features = model.encode_text(tokens)
        return features
    # As open_clip's CLIP.encode_text and TextTransformer.forward, at the length that is needed.
    dtype = tower.transformer.get_cast_dtype()
    states = tower.token_embedding(tokens).to(dtype)
    states = states + tower.positional_embedding[:num_tokens].to(dtype)
    mask = tower.attn_mask[:num_tokens, :num_tokens]
    states = tower.ln_final(tower.transformer(states, attn_mask=mask))
    features = text_global_pool(states, tokens, *_pooling(tower))
    projection = tower.text_projection
    if isinstance(projection, torch.nn.Linear):
        features = projection(features)
    elif projection is not None:
        features = features @ projection
    return features


def _is_causal(tower: Any) -> bool:
    """No state of its own after the text, as CoCa's towers have, and a mask over what follows."""
    return (
        getattr(tower, "attn_mask", None) is not None
        and hasattr(tower, "ln_final")
        and getattr(tower, "cls_emb", None) is None
    )


def _pooling(tower: Any) -> tuple[str, int | None]:
    """Which state stands for the text; plain CLIP models hold their tower's fields themselves."""
    if hasattr(tower, "text_pool_type"):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id
