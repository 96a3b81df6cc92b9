"""Classes of unequal size: what an image weighs in the loss, and how often it is drawn and changed."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.hyperparameters import LossConfig


def class_weights(config: LossConfig, labels: Tensor, classes: int) -> Tensor | None:
    """What an image of each class weighs in the loss, float32 `(classes,)` on the device of `labels`; None where all weigh the same.

    `inverse` divides by the number of the class's images, `effective` by their effective number (1 - beta^n) / (1 - beta)
    (Cui et al. 2019, arXiv:1901.05555). The mean weight over the images with these `labels` `(N,)` is 1, so that a learning rate
    does what it does without weights.
    """
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).double()
    beta = config.effective_beta
    numbers = counts if config.class_weights == "inverse" else (1 - beta**counts) / (1 - beta)
    weights = torch.where(counts > 0, 1 / numbers, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many positions in `labels` `(N,)` as there are, in random order: of every class as many as of any other, give or take one.

    Within a class each image comes as often as any other, give or take once. So those of a rare class are repeated, and of a frequent
    one some are left out; classes of one size have every image once.
    """
    counts = torch.bincount(labels)
    by_class = torch.split(torch.argsort(labels, stable=True), counts[counts > 0].tolist())
    share, rest = divmod(len(labels), len(by_class))
    has_one_more = torch.randperm(len(by_class), generator=generator) < rest
    drawn = []
    for own, more in zip(by_class, has_one_more.tolist(), strict=True):
        times, left = divmod(share + more, len(own))
        drawn += [own.repeat(times), own[torch.randperm(len(own), generator=generator)[:left]]]
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator)]


def change_probabilities(labels: Tensor) -> Tensor:
    """How probably an image with each of the `labels` `(N,)` is augmented, float32 `(N,)`: (rarest class / its own) ** 0.5.

    Those of the rarest class always are: what is drawn again and again is not to be the same picture each time.
    """
    counts = torch.bincount(labels)
    return (counts[counts > 0].min() / counts[labels]).sqrt()
