"""The only training loop: a generator of one `EpochMetrics` per epoch, with no framework in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.averaging import WeightAverage, build_average, judged
from trainer.batches import ImageTensors, steps_per_epoch
from trainer.data import ImageData
from trainer.early_stopping import is_out_of_patience
from trainer.evaluation import EpochScores, epoch_scores
from trainer.gradients import Gradients, blame, measure, note, read
from trainer.hyperparameters import OptimizerConfig, TrainingConfig, TrialConfig
from trainer.imbalance import class_weights
from trainer.measuring import ACCURACY, Metric
from trainer.metrics import EpochMetrics
from trainer.model import Classifier, build_model
from trainer.objective import (
    Loss,
    build_loss,
    build_optimizers,
    build_penalty,
    learning_rate_factor,
    supports_bfloat16,
    update,
)
from trainer.torchvision_nets import load_pretrained
from trainer.training_state import Position

EVALUATION_BATCH = 1000
_WHITENING_IMAGES = 5000
_STEPS_BETWEEN_AGREEMENTS = 8
"""How often several ranks ask each other whether to stop: one small all-reduce, 0.1 ms over loopback."""


class NotFiniteError(ArithmeticError):
    """The loss became infinite or not a number; the message names the layer whose gradient exploded, where that is known."""


@dataclass(frozen=True)
class Evaluation:
    """Logits float32 `(N, classes)` and labels `(N,)` of a split, on the CPU."""

    logits: Tensor
    labels: Tensor


def create_model(config: TrialConfig, data: ImageData, device: torch.device, *, is_new: bool = True) -> Classifier:
    """The trial's network on the device, with the weights that its seed gives and whitening kernels that the data gives.

    One that is pretrained gets those weights, unless it is not new: then it is to get its own from a checkpoint, and nothing is
    downloaded. Raises RuntimeError when pretrained weights can be neither found nor downloaded.
    """
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, data.image_shape, len(data.classes), data.mean, data.std)
    if config.model.is_pretrained and is_new:
        load_pretrained(model, config.model)
    if config.model.family == "convnet" and config.model.whitening:
        model.fit_whitening(torch.from_numpy(data.train.images[data.train.rows[:_WHITENING_IMAGES]]))
    return model.to(device)


def train(
    model: Classifier,
    config: TrialConfig,
    training: ImageTensors,
    validation: ImageTensors | None,
    *,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    average: WeightAverage | None = None,
    position: Position | None = None,
    history: Sequence[EpochMetrics] = (),
    goal: Metric = ACCURACY,
    rank: int = 0,
    world_size: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochMetrics]:
    """Train `model` in place, and yield after each epoch; ends early, without a yield, once `should_stop()` says so.

    With several ranks every rank calls it with the same configuration and its own copy of the model inside an
    initialised process group; batch size and losses are those of all ranks together. Equal seeds give equal losses, on
    a CPU bit for bit, also to a training that goes on from a `position` with the weights, the `optimizers` (those of
    `build_optimizers`) and the `average` (that of `build_average`) that it had there, after the epochs of its `history`: what a step
    draws depends on the seed and its number alone. The position is kept up to date, also when the training ends early. The
    training loss is what is minimised, without penalties. With `training.patience` it ends where epochs are not better by the
    `goal`. Without a validation split nothing is scored: see EpochMetrics. Raises NotFiniteError when the loss of an epoch is not
    finite.
    """
    device, classes = training.device, model.classifier.out_features
    average = build_average(config.training, model) if average is None else average
    loss_of = build_loss(config.loss, class_weights(config.loss, training.labels[training.rows], classes))
    penalty = build_penalty(config.loss, model)
    optimizers = build_optimizers(config.optimizer, model) if optimizers is None else optimizers
    plain_loss = build_loss(replace(config.loss, label_smoothing=0.0))
    epochs, batch_size = config.training.epochs, min(config.training.batch_size, len(training))
    steps = steps_per_epoch(len(training), batch_size)
    alternating = config.augmentation.flip and config.augmentation.alternating_flip
    at_first = torch.rand(len(training), generator=_generator(config, 0)) < 0.5 if alternating else None
    position, past = Position() if position is None else position, list(history)
    assert not config.training.patience or len(past) == position.epochs
    network: nn.Module | None = None
    for epoch in range(position.epochs + 1, epochs + 1):
        if validation is not None and is_out_of_patience(config.training, past, goal):
            return
        frozen = epoch <= config.model.frozen
        if network is None or epoch == config.model.frozen + 1:
            model.freeze(frozen)  # ranks share the gradients of what is trained, and of nothing else
            network = DistributedDataParallel(model) if world_size > 1 else model
        started, skipped = time.perf_counter(), position.steps
        network.train()
        mirrored = None if at_first is None else at_first ^ (epoch % 2 == 0)
        total = torch.full((), position.loss, device=device)  # stays there: no synchronisation inside an epoch
        draws, sampling = _generator(config, epoch), config.training.sampling
        for images, targets, size in training.shuffled(
            batch_size, config.augmentation, draws, rank, world_size, mirrored, skipped, sampling, classes
        ):
            step = steps * position.epochs + position.steps
            torch.manual_seed(_seed(config, epoch, 1 + rank, position.steps))  # dropout differs between the ranks
            if _agree_to_stop(should_stop, step, world_size):
                position.loss = _sum_over_ranks(total / world_size, world_size).item()
                position.epoch_seconds += time.perf_counter() - started
                return
            rate = config.optimizer.learning_rate * learning_rate_factor(config.schedule, step / (steps * epochs))
            _set_learning_rate(optimizers, rate)
            with autocast(config.training, device):
                logits = network(images)
            # Gradients are averaged over the ranks; scaled so, the sum is the mean over the global batch.
            loss = loss_of(logits, targets).sum() * (world_size / size)
            torch.autograd.backward(loss if penalty is None else loss + penalty())
            position.steps += 1
            if position.steps == steps and not frozen:
                measured = measure(model)
            _descend(model, config.optimizer, optimizers)
            if average is not None:
                average.update(step)
            total += loss.detach()
        trained = _synchronized_clock(device)
        _share_statistics(model, world_size)
        if average is not None:
            _share_statistics(average.model, world_size)
        evaluated = time.perf_counter()
        scores, held_out = EpochScores(0.0, 0.0, 0.0, 0.0), 0 if validation is None else len(validation)
        if validation is not None:
            scores = score(judged(model, average), validation, plain_loss, config.training, rank, world_size)
        evaluation = time.perf_counter() - evaluated
        train_loss = _sum_over_ranks(total / (steps * world_size), world_size).item()
        note(position.gradients, epoch, [] if frozen else read(measured))
        if not (torch.isfinite(torch.tensor([train_loss, scores.loss])).all()):
            why = blame(Gradients.of(model, position.gradients))
            raise NotFiniteError(
                f"The loss is not finite in epoch {epoch}: train {train_loss}, validation {scores.loss}.{why}"
            )
        before = position.epoch_seconds
        position.epochs, position.steps, position.loss, position.epoch_seconds = epoch, 0, 0.0, 0.0
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            learning_rate=rate,
            images_per_second=(steps - skipped) * batch_size / (trained - started),
            seconds=before + time.perf_counter() - started,
            latency=1000 * evaluation * world_size / held_out if held_out else 0.0,
            macro_f1=scores.macro_f1,
            balanced_accuracy=scores.balanced_accuracy,
        )
        past.append(metrics)
        yield metrics


def score(
    model: Classifier, split: ImageTensors, loss_of: Loss, config: TrainingConfig, rank: int = 0, world_size: int = 1
) -> EpochScores:
    """The model's scores on a split, each rank counting its part of it."""
    model.eval()
    classes = model.classifier.out_features
    loss = torch.zeros(1, dtype=torch.float64, device=split.device)
    confusion = torch.zeros(classes * classes, dtype=torch.float64, device=split.device)
    with torch.inference_mode():
        for images, labels in split.in_order(EVALUATION_BATCH, rank, world_size):
            with autocast(config, split.device):
                logits = model(images)
            loss += loss_of(logits, labels).sum()
            # Not bincount, for which a GPU is waited for in every batch.
            confusion.index_add_(0, labels * classes + logits.argmax(1), confusion.new_ones(len(labels)))
    sums = _sum_over_ranks(torch.cat([loss, confusion]), world_size).cpu()
    return epoch_scores(sums[0].item() / len(split), sums[1:].view(classes, classes).long().numpy())


def predict_split(model: Classifier, split: ImageTensors) -> Evaluation:
    """The model's float32 logits for every image of the split."""
    model.eval()
    with torch.inference_mode():
        parts = [(model(images).float().cpu(), labels.cpu()) for images, labels in split.in_order(EVALUATION_BATCH)]
    return Evaluation(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast if it is asked for, or if `auto` finds the hardware for it."""
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and supports_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def _seed(config: TrialConfig, *what: int) -> int:
    """A seed of its own for each `what`, from the trial's."""
    return int(np.random.SeedSequence((config.training.seed, *what)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(config: TrialConfig, epoch: int) -> torch.Generator:
    """Draws order and augmentation of an epoch, the same on every rank."""
    return torch.Generator().manual_seed(_seed(config, epoch))


def _descend(model: nn.Module, config: OptimizerConfig, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """One step along the gradients, which are made shorter before it where they are longer than `clip_norm` together."""
    if config.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    for optimizer in optimizers:
        update(optimizer)


def _set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def _agree_to_stop(should_stop: Callable[[], bool], step: int, world_size: int) -> bool:
    """Whether to stop before this step; all ranks get the same answer, or one would wait for the others for ever."""
    if world_size == 1:
        return should_stop()
    if step % _STEPS_BETWEEN_AGREEMENTS:
        return False
    return _sum_over_ranks(torch.tensor(float(should_stop())), world_size).item() > 0


def _sum_over_ranks(value: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        value = value.cuda() if dist.get_backend() == "nccl" else value
        dist.all_reduce(value)
    return value


def _share_statistics(model: nn.Module, world_size: int) -> None:
    """Batch normalisation counts on each rank by itself: all go on with the first rank's, which are those it saves."""
    if world_size > 1:
        for statistics in model.buffers():
            dist.broadcast(statistics, src=0)


def _synchronized_clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
