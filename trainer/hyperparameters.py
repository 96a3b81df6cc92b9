"""Every hyperparameter of a trial, declared once: type, default, domain, condition and meaning.

The search space, the overrides of the YAML file and of the command line, the leaderboard's columns, the model card and
the tables in the documentation are all derived from the fields below, and those of `trainer/model_config.py`, by `parameters()`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from trainer.domains import Between, ByValue, Doc, Domain, OneOf, PerBlock, Value, When
from trainer.model_config import FLAG as FLAG
from trainer.model_config import MAX_BLOCKS as MAX_BLOCKS
from trainer.model_config import ModelConfig as ModelConfig


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes of the training images."""

    flip: Annotated[bool, FLAG, Doc("mirror left-right, half of the time")] = False
    alternating_flip: Annotated[
        bool,
        FLAG,
        When("augmentation.flip", (True,)),
        Doc("mirror each image in every other epoch instead of at random"),
    ] = False
    shift: Annotated[
        int, Between(0, 64, 1, search=(0, 1, 2, 4)), Doc("random shift by up to this many pixels, edges reflected")
    ] = 0
    cutout: Annotated[int, Between(0, 224, 1, search=(0, 4, 8)), Doc("side of a random square set to the mean")] = 0
    randaugment: Annotated[int, Between(0, 4, 1, search=()), Doc("RandAugment's operations per image; 0: none")] = 0
    magnitude: Annotated[
        int, Between(0, 30, 1, search=()), When("augmentation.randaugment", (1, 2, 3, 4)), Doc("RandAugment's strength")
    ] = 9
    mixup: Annotated[float, Between(0.0, 10.0, search=()), Doc("alpha of mixup, which blends pairs; 0: none")] = 0.0
    cutmix: Annotated[float, Between(0.0, 10.0, search=()), Doc("alpha of CutMix, which pastes parts; 0: none")] = 0.0
    balanced: Annotated[
        bool, OneOf((False, True), ()), Doc("change an image with the probability (rarest class / its class) ** 0.5")
    ] = False


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Annotated[str, OneOf(("cross_entropy", "focal", "mean_squared_error")), Doc("loss function")] = (
        "cross_entropy"
    )
    label_smoothing: Annotated[
        float,
        Between(0.0, 0.5, search=Between(0.0, 0.2)),
        When("loss.name", ("cross_entropy",)),
        Doc("label smoothing"),
    ] = 0.0
    gamma: Annotated[
        float,
        Between(0.0, 10.0, search=Between(0.5, 4.0)),
        When("loss.name", ("focal",)),
        Doc("how much the focal loss favours hard images"),
    ] = 2.0
    class_weights: Annotated[
        str, OneOf(("none", "inverse", "effective"), ()), Doc("images of rare classes count for more in the loss")
    ] = "none"
    effective_beta: Annotated[
        float,
        Between(0.0, 0.999999, search=()),
        When("loss.class_weights", ("effective",)),
        Doc("what each further image of a class adds, against the one before it"),
    ] = 0.999
    l1: Annotated[float, Between(0.0, 1.0, search=()), Doc("penalty: this times the sum of the absolute weights")] = 0.0
    l2: Annotated[float, Between(0.0, 1.0, search=()), Doc("penalty: this times the sum of the squared weights")] = 0.0


_LEARNING_RATES = ByValue(
    "optimizer.name",
    {
        "sgd": Between(0.01, 0.5, log=True),
        "adam": Between(3e-4, 0.01, log=True),
        "adamw": Between(3e-4, 0.01, log=True),
        "rmsprop": Between(1e-4, 0.003, log=True),
        "muon": Between(1e-3, 0.03, log=True),
    },
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights follow the gradient."""

    name: Annotated[str, OneOf(("sgd", "adam", "adamw", "rmsprop", "muon")), Doc("optimizer")] = "adamw"
    learning_rate: Annotated[
        float, Between(1e-7, 10.0, log=True, search=_LEARNING_RATES), Doc("peak learning rate")
    ] = 0.003
    momentum: Annotated[
        float, Between(0.0, 0.999, search=Between(0.8, 0.98)), When("optimizer.name", ("sgd", "muon")), Doc("momentum")
    ] = 0.9
    nesterov: Annotated[bool, FLAG, When("optimizer.name", ("sgd", "muon")), Doc("Nesterov's momentum")] = True
    weight_decay: Annotated[
        float, Between(0.0, 10.0, log=True, search=Between(1e-6, 1e-2, log=True)), Doc("weight decay")
    ] = 0.0
    clip_norm: Annotated[float, Between(0.0, 1000.0, search=()), Doc("longest gradient of all weights; 0: any")] = 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes from step to step."""

    name: Annotated[str, OneOf(("constant", "cosine", "one_cycle")), Doc("learning-rate schedule")] = "one_cycle"
    warmup_fraction: Annotated[
        float,
        Between(0.0, 0.9, search=Between(0.1, 0.4)),
        When("schedule.name", ("one_cycle",)),
        Doc("share of the steps in which the learning rate rises to its peak"),
    ] = 0.2
    warmup: Annotated[
        float,
        Between(0.0, 0.9, search=()),
        When("schedule.name", ("constant", "cosine")),
        Doc("share of the steps in which the learning rate first rises to its peak"),
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in which portions and with which numbers. Not searched, but for the batch size."""

    batch_size: Annotated[
        int, Between(1, 65536, 1, search=(64, 128, 256)), Doc("images per step, over all ranks together")
    ] = 128
    epochs: Annotated[int, Between(1, 100_000, 1, search=()), Doc("passes over the training split")] = 10
    patience: Annotated[int, Between(0, 9999, 1, search=()), Doc("epochs without gain before it ends; 0: any")] = 0
    sampling: Annotated[
        str, OneOf(("shuffled", "balanced"), ()), Doc("an epoch has each image once, or each class equally often")
    ] = "shuffled"
    ema: Annotated[float, Between(0.0, 0.99999, search=()), Doc("decay of the weights' moving average; 0: none")] = 0.0
    precision: Annotated[
        str,
        OneOf(("auto", "float32", "bfloat16"), ()),
        Doc("arithmetic of the network; auto: bfloat16 autocast where the hardware has it"),
    ] = "auto"
    seed: Annotated[int, Between(0, 2**31 - 1, 1, search=()), Doc("seed of weights, order and augmentation")] = 0


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One point of the space: everything that decides a trial's outcome besides the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for parameter in parameters():
            value = getattr(getattr(self, parameter.section), parameter.key)
            for single in value if parameter.per_block else (value,):
                parameter.check(single)
            if parameter.per_block and len(value) != self.model.blocks:
                raise ValueError(
                    f"{parameter.name} has one value per block, but got {len(value)} values "
                    f"for model.blocks = {self.model.blocks}."
                )


@dataclass(frozen=True)
class Parameter:
    """One declared hyperparameter, as `parameters()` lists them. Its `name` is `section.key`, as users write it."""

    section: str
    key: str
    type: type
    default: Any
    domain: Domain
    condition: When | None
    doc: str
    per_block: bool

    @property
    def name(self) -> str:
        """The full name, such as `optimizer.learning_rate`."""
        return f"{self.section}.{self.key}"

    def check(self, value: object) -> Value:
        """`value` as the declared type; raises ValueError when it is of another type or outside the domain."""
        given = self._converted(value)
        if given is None or not self.domain.allows(given):
            close = ""
            if isinstance(self.domain, OneOf) and isinstance(value, str):
                close = nearest(value, [v for v in self.domain.values if isinstance(v, str)])
            raise ValueError(f"{self.name} must be {self.domain}, but got {value!r}.{close}")
        return given

    def _converted(self, value: object) -> Value | None:
        """The value as the declared type if that loses nothing: 3.0 is an int here, True is none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value if type(value) is self.type else None  # type: ignore[return-value]
        try:
            if self.type is float:
                return float(value)
            return int(value) if self.type is int and value == int(value) else None
        except (OverflowError, ValueError):  # beyond any number, or not one
            return None

    def is_active(self, active: Mapping[str, Value]) -> bool:
        """Whether the hyperparameter has an effect, given the ones before it (a flat configuration)."""
        return self.condition is None or active.get(self.condition.name) in self.condition.values


@cache
def parameters() -> tuple[Parameter, ...]:
    """All hyperparameters in the order of their declaration; a condition refers only to earlier ones."""
    found = []
    for section, config in get_type_hints(TrialConfig).items():
        hints = get_type_hints(config, include_extras=True)
        for item in dataclasses.fields(config):
            base, *notes = get_args(hints[item.name])
            by_type = {type(note): note for note in notes}
            domain = by_type.get(OneOf) or by_type[Between]
            per_block = PerBlock in by_type
            kind = get_args(base)[0] if get_origin(base) is tuple else base
            condition, doc = by_type.get(When), by_type[Doc].text
            found.append(Parameter(section, item.name, kind, item.default, domain, condition, doc, per_block))
    return tuple(found)


def parameter(name: str) -> Parameter:
    """The hyperparameter called `name` (`model.kernel_size.2` is `model.kernel_size`'s second block).

    Raises ValueError with the nearest valid name when there is none.
    """
    if not isinstance(name, str):
        raise ValueError(f"A hyperparameter has a name such as optimizer.learning_rate, but got {name!r}.")
    known = {p.name: p for p in parameters()}
    base, _, block = name.rpartition(".")
    if base in known and known[base].per_block and block.isdigit():
        if not 1 <= int(block) <= MAX_BLOCKS:
            raise ValueError(f"{name}: blocks are numbered 1 to {MAX_BLOCKS}.")
        return known[base]
    if name not in known:
        hint = nearest(name, known) or " `convsweep train --help` says where they are listed."
        raise ValueError(f"There is no hyperparameter {name!r}.{hint}")
    return known[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of the `known` words, or nothing when none is close."""
    known = list(known)
    for k in known:
        if k.lower() == word.lower():
            return f" Did you mean {k!r}?"
    same_key = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    close = difflib.get_close_matches(word, same_key, n=1, cutoff=0) or difflib.get_close_matches(
        word, known, n=1, cutoff=0.5
    )
    return f" Did you mean {close[0]!r}?" if close else ""


def flatten(config: TrialConfig) -> dict[str, Value]:
    """The active hyperparameters as `{"model.kernel_size.1": 3, ...}`, in the order of their declaration."""
    flat: dict[str, Value] = {}
    for p in parameters():
        value = getattr(getattr(config, p.section), p.key)
        if p.is_active(flat):
            flat.update({f"{p.name}.{i}": v for i, v in enumerate(value, 1)} if p.per_block else {p.name: value})
    return flat


def unflatten(flat: Mapping[str, Any], base: TrialConfig | None = None) -> TrialConfig:
    """The configuration that `flat` describes; what it leaves out is as in `base` (default: the defaults).

    `model.kernel_size` is a value for every block or a list with one per block, `model.kernel_size.2` the second block's alone. Blocks that
    `base` does not have repeat its last one. Raises ValueError for unknown names and values outside the domain.
    """
    base = base or TrialConfig()
    for name in flat:
        parameter(name)
    blocks = int(parameter("model.blocks").check(flat.get("model.blocks", base.model.blocks)))
    for name in flat:
        block = name.rpartition(".")[2]
        if block.isdigit() and int(block) > blocks:
            raise ValueError(f"{name}: the network has {blocks} blocks.")
    sections: dict[str, dict[str, Any]] = {}
    for p in parameters():
        value = getattr(getattr(base, p.section), p.key)
        if p.per_block:
            value = _per_block(p, value, flat, blocks)
        elif p.name in flat:
            value = p.check(flat[p.name])
        sections.setdefault(p.section, {})[p.key] = value
    types = get_type_hints(TrialConfig)
    return TrialConfig(**{section: types[section](**values) for section, values in sections.items()})


def _per_block(p: Parameter, base: tuple[Value, ...], flat: Mapping[str, Any], blocks: int) -> tuple[Value, ...]:
    given = flat.get(p.name)
    if isinstance(given, list | tuple):
        if len(given) != blocks:
            raise ValueError(f"{p.name} has one value per block, but got {len(given)} values for {blocks} blocks.")
        values = list(given)
    elif p.name in flat:
        values = [given] * blocks
    else:
        values = [base[min(i, len(base) - 1)] for i in range(blocks)]
    return tuple(p.check(flat.get(f"{p.name}.{i}", v)) for i, v in enumerate(values, 1))


def refuse_without_effect(given: Iterable[str], config: TrialConfig) -> None:
    """Raise ValueError when a hyperparameter that somebody names has no effect in the configuration."""
    flat = flatten(config)
    for name in given:
        condition = parameter(name).condition
        if condition is not None and not parameter(name).is_active(flat):
            found = flat.get(condition.name, "without effect")
            raise ValueError(
                f"{name} has an effect only with {condition.name} = {condition}, but here that is {found}."
            )


def describe(config: TrialConfig) -> Iterator[tuple[str, Value, str]]:
    """(name, value, meaning) of each active hyperparameter, for tables that people read."""
    for name, value in flatten(config).items():
        yield name, value, parameter(name).doc


def in_short(flat: Mapping[str, Value]) -> str:
    """The few values that tell configurations apart, for one line: 'kernels 3-5-3, filters 32-64-128, relu, adamw 0.003, batch 128'."""

    def of(name: str) -> str:
        values = [v for key, v in flat.items() if key == name or key.rpartition(".")[0] == name]
        return "-".join(f"{v:.2g}" if isinstance(v, float) else str(v) for v in values)

    family = flat.get("model.family", "convnet")  # there was no other one before there were families
    convolutions = f"kernels {of('model.kernel_size')}, filters {of('model.filters')}, {of('model.activation')}"
    if family == "convnet":
        network = convolutions
    elif family == "resnet":
        network = f"resnet {of('model.depth')}, {convolutions}"
    elif family == "rnn":
        both = ", both ways" if flat.get("model.bidirectional") else ""
        network = f"rnn {of('model.cell')}, {of('model.layers')} x {of('model.units')} units{both}"
    elif family == "transformer":
        size, layers = of("model.patch_size"), of("model.layers")
        heads = f"{of('model.heads')} x {of('model.head_units')}"
        network = f"transformer, patches {size}x{size}, layers {layers}, heads {heads}, {of('model.positions')}"
    else:
        network = f"{family}, pretrained" if flat.get("model.pretrained") else str(family)
    return f"{network}, {of('optimizer.name')} {of('optimizer.learning_rate')}, batch {of('training.batch_size')}"
