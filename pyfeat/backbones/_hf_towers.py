"""Models of two towers, CLIP and SigLIP: images and texts brought into one space.

A row is v / |v|, v being what `get_image_features` or `get_text_features` of transformers return.
The logits of the model are exp(logit_scale) times the inner product of two rows, for SigLIP plus a
bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._layers import tensor_of
from pyfeat.backbones._pretrained import Joint
from pyfeat.backbones._weights import weights_hash

_PARTS = {
    "image": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}


def joint_of(model: Any, tower: str) -> Joint:
    """Return the space that the towers of a whole model share; before one of them is dropped."""
    scale = float(model.logit_scale.detach().float().exp())
    return Joint(weights_hash(model.float().state_dict()), tower, scale)


def drop_other_tower(model: Any, tower: str) -> None:
    """Drop the tower that is not `tower`: its weights do not identify the rows of this one."""
    for part in _PARTS["text" if tower == "image" else "image"]:
        if hasattr(model, part):
            delattr(model, part)


class ImageTower(nn.Module):
    """Pixels to projected rows of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, d)."""
        return _projected(self.model.get_image_features(pixel_values=pixels))


class TextTower(nn.Module):
    """Tokens and mask to projected rows of length 1."""

    def __init__(self, model: Any, fill: int, use_mask: bool) -> None:
        super().__init__()
        self.model = model
        self._fill = fill
        self._use_mask = use_mask

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (n, d)."""
        # CLIP's padding token may be its end token, which marks where the row is read.
        ids = torch.where(mask > 0, ids, self._fill)
        seen = {"attention_mask": mask} if self._use_mask else {}
        return _projected(self.model.get_text_features(input_ids=ids, **seen))


def _projected(out: Any) -> Tensor:
    # A tensor before transformers 5, since then an output whose pooled part is the projected one.
    pooled = getattr(out, "pooler_output", None)
    rows: Tensor = tensor_of(out) if pooled is None else pooled
    return nn.functional.normalize(rows, dim=-1)
