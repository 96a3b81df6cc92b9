"""All that a training needs to go on after a step as if nothing had happened.

What a step draws depends on the seed and its number alone, as does the learning rate: so there is no random state and no
schedule to keep, only weights, what the optimizers remember, and where the training is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.averaging import WeightAverage
from trainer.gradients import Norms
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.metrics import EpochMetrics


@dataclass
class Position:
    """Where a training is: it has had `epochs`, and of the next one so many `steps`, whose mean losses add up to `loss`.

    `epoch_seconds` have gone into those steps. Of a cross-validated trial it is the place in this `fold`. `gradients` are what was
    measured in each of the epochs: see trainer/gradients.py.
    """

    epochs: int = 0
    steps: int = 0
    loss: float = 0.0
    epoch_seconds: float = 0.0
    fold: int = 0
    gradients: list[Norms] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingState:
    """A training at a `position`, after the epochs of its `history`, those of earlier folds too: `seconds` have gone into it.

    `tensors` are the model's by their names after "model.", those of its average, if it has one, after "average.", and the
    optimizers' as "optimizer.PLACE.PARAMETER.NAME".
    """

    config: TrialConfig
    history: tuple[EpochMetrics, ...]
    seconds: float
    tensors: Mapping[str, Tensor]
    position: Position = field(default_factory=Position)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        config: TrialConfig,
        history: Sequence[EpochMetrics],
        seconds: float,
        position: Position,
        average: WeightAverage | None = None,
    ) -> TrainingState:
        """The state as it is now; the tensors are those that the training goes on to change: see `copied`."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in average.model.state_dict().items()}
        for place, optimizer in enumerate(optimizers):
            for number, remembered in optimizer.state_dict()["state"].items():
                for name, value in remembered.items():
                    if value is not None:  # a momentum that is not used
                        tensors[f"optimizer.{place}.{number}.{name}"] = value
        as_it_is = replace(position, gradients=[*position.gradients])
        return cls(config, tuple(history), seconds, tensors, as_it_is)

    def copied(self) -> TrainingState:
        """With copies of the tensors, on the CPU."""
        return replace(self, tensors={name: t.detach().to("cpu", copy=True) for name, t in self.tensors.items()})

    def restore(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: WeightAverage | None = None
    ) -> None:
        """Give the model, its optimizers and its average, which are new, what they had. Raises RuntimeError when it does not fit them."""
        model.load_state_dict(_below(self.tensors, "model."))
        if average is not None:
            average.model.load_state_dict(_below(self.tensors, "average."))
        for place, optimizer in enumerate(optimizers):
            own = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(self.tensors, f"optimizer.{place}.").items():
                number, _, short = name.partition(".")
                state.setdefault(int(number), {})[short] = _laid_out_as(parameters[int(number)], value)
            optimizer.load_state_dict(own | {"state": state})

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        facts = {
            "config": json.dumps(flatten(self.config)),
            "history": json.dumps([e.to_json() for e in self.history]),
            "seconds": repr(self.seconds),
            "position": json.dumps(asdict(self.position)),
        }
        return safetensors.torch.save({name: t.contiguous() for name, t in self.tensors.items()}, facts)

    @classmethod
    def from_bytes(cls, content: bytes) -> TrainingState:
        """What `to_bytes` gave. Raises ValueError for anything else."""
        try:
            length = int.from_bytes(content[:8], "little")
            facts = json.loads(content[8 : 8 + length])["__metadata__"]
            history = tuple(EpochMetrics(**values) for values in json.loads(facts["history"]))
            config = unflatten(json.loads(facts["config"]))
            position = Position(**json.loads(facts["position"]))
            if position.epochs != sum(e.fold == position.fold for e in history) or position.steps < 0:
                raise ValueError(f"{len(history)} epochs, but it is at {position}")
            return cls(config, history, float(facts["seconds"]), safetensors.torch.load(content), position)
        except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise ValueError(f"The state of a training is damaged ({type(error).__name__}: {error}).") from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Fused optimizers walk through parameter, gradient and memory in one order: that of `channels_last` is not the file's."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
