"""The moving average of a network's weights, which is judged and kept in their place."""

from __future__ import annotations

import copy

import torch

from trainer.hyperparameters import TrainingConfig
from trainer.model import Classifier


class WeightAverage:
    """The exponential moving average of a model's weights and buffers, as a `model` of its own.

    After t steps its decay is (1 + t) / (10 + t) at most, as TensorFlow has it, so that a young average forgets the random weights
    of the beginning. Whole numbers are those of the last step.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        # The tensors themselves, which stay where they are: a step changes them in place.
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages, self._values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, step: int) -> None:
        """Take in the model as it is after this step of the training, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._values, 1 - decay)
            for mine, theirs in self._counts:
                mine.copy_(theirs)


def build_average(config: TrainingConfig, model: Classifier) -> WeightAverage | None:
    """The average that the configuration asks for, of a model that is on its device; None without one."""
    return WeightAverage(model, config.ema) if config.ema else None


def judged(model: Classifier, average: WeightAverage | None) -> Classifier:
    """The network that is validated and kept: the average where there is one."""
    return model if average is None else average.model
