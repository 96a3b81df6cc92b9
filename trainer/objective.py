"""What is minimised and how: losses, optimizers and learning-rate schedules, built from their configurations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from trainer.hyperparameters import LossConfig, OptimizerConfig, ScheduleConfig
from trainer.model import Classifier
from trainer.muon import Muon
from trainer.torchvision_nets import Pixels

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(config: LossConfig, weights: Tensor | None = None) -> Loss:
    """A function of logits `(N, classes)` and targets that gives the loss of each image, `(N,)`, float32.

    Targets are labels `(N,)`, or the probabilities of the classes, `(N, classes)`. With `weights` `(classes,)` the loss of an image is
    multiplied by its class's, or by the mean of those of its classes.
    """

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=config.label_smoothing)

    def focal(logits: Tensor, targets: Tensor) -> Tensor:
        """-(1 - p)^gamma log p (Lin et al. 2017, arXiv:1708.02002), or its mean over the classes of an image."""
        log_p = F.log_softmax(logits.float(), 1)
        if targets.ndim == 1:
            log_p = log_p.gather(1, targets[:, None])[:, 0]
        losses = -((1 - log_p.exp()).clamp(min=1e-8) ** config.gamma) * log_p
        return losses if targets.ndim == 1 else (targets * losses).sum(1)

    def mean_squared_error(logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the classes of (probability - target)^2, as Keras computes it on a softmax output."""
        wanted = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
        return (logits.float().softmax(1) - wanted).square().mean(1)

    losses = {"cross_entropy": cross_entropy, "focal": focal, "mean_squared_error": mean_squared_error}[config.name]
    if weights is None:
        return losses
    return lambda logits, targets: (
        losses(logits, targets) * (weights[targets] if targets.ndim == 1 else targets @ weights)
    )


def build_penalty(config: LossConfig, model: Classifier) -> Callable[[], Tensor] | None:
    """A function that gives what is added to the loss for the weights as they are; None where nothing is.

    Like weight decay, penalties are for kernels and matrices alone. Unlike it, they are part of the gradient that an optimizer
    scales and that is clipped.
    """
    weights = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]

    def penalty() -> Tensor:
        added = torch.zeros((), device=weights[0].device)
        if config.l1:
            added = added + config.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        if config.l2:
            added = added + config.l2 * torch.stack([w.square().sum() for w in weights]).sum()
        return added

    return penalty if config.l1 or config.l2 else None


def build_optimizers(config: OptimizerConfig, model: Classifier) -> list[Optimizer]:
    """The optimizers of a model, each of whose parameter groups has the configured peak learning rate as `lr`.

    Weight decay shrinks kernels and matrices, never biases, normalisation, positions or other tables. `muon` moves the kernels and
    matrices before the classifier and leaves everything else to AdamW, as its author does.
    """
    _leave_the_compiler_out()
    trained = [(_is_weight(name, p), p) for name, p in model.named_parameters() if p.requires_grad]
    weights = [p for is_weight, p in trained if is_weight]
    others = [p for is_weight, p in trained if not is_weight]
    if config.name == "muon":
        last = [p for p in weights if p is model.classifier.weight]
        hidden = [p for p in weights if p is not model.classifier.weight]
        muon = Muon(
            hidden,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        return [muon, AdamW(_groups(last, others, config.weight_decay), lr=config.learning_rate, fused=True)]
    groups = _groups(weights, others, config.weight_decay)
    lr = config.learning_rate
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        # The fused one cannot step what has a momentum, a classifier that was trained alone, together with what has none yet.
        fused = None if isinstance(next(model.features.children()), Pixels) else True
        return [SGD(groups, lr=lr, momentum=config.momentum, nesterov=nesterov, fused=fused)]
    if config.name == "rmsprop":
        return [RMSprop(groups, lr=lr, alpha=0.9, eps=1e-7)]  # Keras's constants; torch's own are 0.99 and 1e-8
    return [(Adam if config.name == "adam" else AdamW)(groups, lr=lr, fused=True)]


def update(optimizer: Optimizer) -> None:
    """One step of the optimizer, whose gradients are gone after it.

    Without what torch puts around a step for its compiler, which would be imported for it: 2 s and 100 MB in every process.
    """
    step: Any = inspect.unwrap(type(optimizer).step)
    with torch.no_grad():
        step(optimizer)
    optimizer.zero_grad()


@cache
def _leave_the_compiler_out() -> None:
    """Optimizers import it when they are made, to tell it to keep out of some methods, by a mark that they look for first."""
    for method in vars(Optimizer).values():
        if (inner := getattr(method, "__wrapped__", None)) is not None:
            setattr(inner, "__dynamo_disable", inner)


def _is_weight(name: str, parameter: Tensor) -> bool:
    """Whether inputs are multiplied by it, a kernel or a matrix: torch calls these so, as `in_proj_weight` and `weight_hh_l0`."""
    return parameter.ndim >= 2 and "weight" in name.rpartition(".")[2]


def _groups(weights: Sequence[Tensor], others: Sequence[Tensor], weight_decay: float) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = [{"params": weights, "weight_decay": weight_decay}]
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """The share of the peak learning rate at `progress` = steps done / all steps, in [0, 1).

    `one_cycle` rises linearly during the first `warmup_fraction` and falls linearly to zero; the others rise so during `warmup`.
    """
    warmup = config.warmup_fraction if config.name == "one_cycle" else config.warmup
    if progress < warmup:
        return progress / warmup
    if config.name == "constant":
        return 1.0
    rest = (progress - warmup) / (1 - warmup)
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return (1 - progress) / (1 - warmup)


def supports_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is done in hardware there, so that autocast is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The only question torch answers about it has a private name; without an answer float32 is the safe choice.
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
