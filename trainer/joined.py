"""Training and validation split as one: what a final training, for which nothing is held out, trains on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainer.batches import ImageTensors
from trainer.data import ImageData, Split
from trainer.folds import all_rows


@dataclass(frozen=True)
class JoinedTensors(ImageTensors):
    """Images of two arrays as one split: `rows` from `len(images)` on are those of `more`, which no array holds together."""

    more: Tensor = field(kw_only=True)

    def select(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at these positions of the split, on the device."""
        rows = self.rows[positions.to(self.rows.device)]
        there, first = rows.to(self.images.device), len(self.images)
        images = self.images[there.clamp(max=first - 1)]  # a copy, as `more`'s take their place in it
        beyond = there >= first
        images[beyond] = self.more[there[beyond] - first]
        return images.to(self.device, non_blocking=True), self.labels[rows]


def join(data: ImageData, device: torch.device) -> ImageTensors:
    """Training and validation split as one, on the device where both fit there as `ImageTensors.of` has it.

    Where they are rows of one array, no image is copied. A validation split that is an array of its own is copied behind the
    training images on a GPU alone; in host memory both stay the files that they are.
    """
    train, validation, rows = data.train, data.validation, all_rows(data)
    if train.images is validation.images:
        return ImageTensors.of(Split(train.images, train.labels, rows), device)
    images, more = torch.from_numpy(train.images), torch.from_numpy(validation.images)
    labels = torch.from_numpy(np.concatenate([train.labels, validation.labels])).to(device)
    places = torch.from_numpy(rows).to(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.numel() + more.numel() < free // 2:
            return ImageTensors(torch.cat([images.to(device), more.to(device)]), labels, places, device)
    return JoinedTensors(images, labels, places, device, more=more)
