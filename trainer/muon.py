"""Muon: momentum, orthogonalised (Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

torch has a Muon for matrices only; convolution kernels `(out, in, h, w)` are taken here as matrices `(out, in*h*w)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for tensors of two or more dimensions.

    Updates are scaled by 0.2 sqrt(max(rows, columns)), which gives them the size of Adam's (Liu et al. 2025,
    arXiv:2502.16982), so that one learning rate suits both. Weight decay is decoupled.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                matrix = orthogonalize(update.flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(matrix.view_as(p), alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved to about 1 (0.7 to 1.2), by five quintic Newton-Schulz steps."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal
