"""The frozen text tower that a Carrara run reads captions with: open_clip's, whose image
tower is made as small as it can be, for nothing asks it. Needs open_clip_torch."""

from typing import Any

import torch
from torch import Tensor, nn


class CarraraTextTower(nn.Module):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> "CarraraTextTower":
        import open_clip

        name = f"local-dir:{folder}"
        model = open_clip.create_model(name, weights_only=True, require_pretrained=True)
        return cls(model.eval(), open_clip.get_tokenizer(name))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def token_width(self) -> int:
        return int(self._text.token_embedding.embedding_dim)

    @property
    def _text(self) -> Any:
        """The model itself in open_clip's plain CLIP, else a part of it."""
        return getattr(self.model, "text", self.model)

    @torch.no_grad()
    def token_embeddings(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The last states [n, L, w] float32, and which are tokens [n, L]."""
        tokens = self.tokenizer(texts).to(self.device)
        model: Any = self.model
        outputs = model.forward_intermediates(
            text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        (states,) = outputs["text_intermediates"]
        return states.float(), self._is_token(tokens)

    def _is_token(self, tokens: Tensor) -> Tensor:
        end = getattr(self.tokenizer, "eot_token_id", None)
        if end is None:
            is_token: Tensor = tokens != self._text.pad_id
            return is_token
        places = torch.arange(tokens.shape[1], device=tokens.device)
        ends: Tensor = (tokens == end).int().argmax(dim=1, keepdim=True)
        return places <= ends
