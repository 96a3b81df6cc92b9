"""The declarations, and what is derived from them: `python -m pytest tests/test_hyperparameters.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.domains import Between, ByValue, OneOf, Value
from trainer.hyperparameters import (
    MAX_BLOCKS,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Parameter,
    ScheduleConfig,
    TrainingConfig,
    TrialConfig,
    describe,
    flatten,
    nearest,
    parameter,
    parameters,
    unflatten,
)
from trainer.model import build_model, parameter_count
from trainer.presets import PRESETS, preset
from trainer.torchvision_names import FAMILIES

ALL = pytest.mark.parametrize("p", parameters(), ids=lambda p: p.name)


def values_of(p: Parameter) -> st.SearchStrategy[Any]:
    """Any value that the declaration allows."""
    if p.name == "model.family":  # torchvision's are all alike in what they have
        own = [value for value in p.domain.values if value not in FAMILIES]
        return st.sampled_from([*own, "torchvision:resnet18", "torchvision:vit_b_16"])
    if isinstance(p.domain, OneOf):
        return st.sampled_from(p.domain.values)
    low, high = p.domain.low, p.domain.high
    if p.type is float:
        return st.floats(low, high)
    step = p.domain.step or 1
    return st.integers(0, int(high - low) // step).map(lambda k: int(low) + k * step)


@st.composite
def flat_configs(draw: st.DrawFn) -> dict[str, Value]:
    """A valid flat configuration with every active hyperparameter in it."""
    flat: dict[str, Value] = {}
    for p in parameters():
        if p.condition is not None and flat.get(p.condition.name) not in p.condition.values:
            continue
        if p.per_block:
            flat |= {f"{p.name}.{i}": draw(values_of(p)) for i in range(1, int(flat["model.blocks"]) + 1)}
        else:
            flat[p.name] = draw(values_of(p))
    return flat


# ---- flat configurations ----


@given(flat_configs())
def test_flatten_gives_back_what_unflatten_was_given(flat: dict[str, Value]) -> None:
    again = flatten(unflatten(flat))
    assert again == flat
    assert list(again) == list(flat)
    assert [type(v) for v in again.values()] == [type(v) for v in flat.values()]


@given(flat_configs())
def test_a_configuration_survives_json(flat: dict[str, Value]) -> None:
    config = unflatten(flat)
    assert unflatten(json.loads(json.dumps(flatten(config)))) == config


@given(flat_configs(), flat_configs())
def test_a_full_flat_configuration_leaves_nothing_active_of_its_base(
    flat: dict[str, Value], other: dict[str, Value]
) -> None:
    assert flatten(unflatten(flat, unflatten(other))) == flat


def test_the_default_configuration_is_all_that_an_empty_one_says() -> None:
    assert unflatten({}) == TrialConfig()
    assert flatten(TrialConfig())["model.filters.3"] == ModelConfig().filters[2]
    assert flatten(TrialConfig())["training.batch_size"] == TrainingConfig().batch_size


@pytest.mark.parametrize(
    ("config", "active", "inactive"),
    [
        (TrialConfig(optimizer=OptimizerConfig(name="adam")), [], ["optimizer.momentum", "optimizer.nesterov"]),
        (TrialConfig(optimizer=OptimizerConfig(name="adamw")), [], ["optimizer.momentum", "optimizer.nesterov"]),
        (TrialConfig(optimizer=OptimizerConfig(name="rmsprop")), [], ["optimizer.momentum", "optimizer.nesterov"]),
        (TrialConfig(optimizer=OptimizerConfig(name="sgd")), ["optimizer.momentum", "optimizer.nesterov"], []),
        (TrialConfig(optimizer=OptimizerConfig(name="muon")), ["optimizer.momentum", "optimizer.nesterov"], []),
        (TrialConfig(loss=LossConfig(name="focal")), ["loss.gamma"], ["loss.label_smoothing"]),
        (TrialConfig(loss=LossConfig(name="cross_entropy")), ["loss.label_smoothing"], ["loss.gamma"]),
        (TrialConfig(loss=LossConfig(name="mean_squared_error")), [], ["loss.label_smoothing", "loss.gamma"]),
        (TrialConfig(schedule=ScheduleConfig(name="one_cycle")), ["schedule.warmup_fraction"], []),
        (TrialConfig(schedule=ScheduleConfig(name="cosine")), [], ["schedule.warmup_fraction"]),
        (TrialConfig(model=ModelConfig(padding="same")), ["model.residual"], []),
        (TrialConfig(model=ModelConfig(padding="valid")), [], ["model.residual"]),
    ],
)
def test_only_hyperparameters_with_an_effect_are_in_a_flat_configuration(
    config: TrialConfig, active: list[str], inactive: list[str]
) -> None:
    flat = flatten(config)
    assert set(active) <= set(flat)
    assert not set(inactive) & set(flat)


def test_one_value_is_for_every_block() -> None:
    config = unflatten({"model.blocks": 4, "model.kernel_size": 5})
    assert config.model.kernel_size == (5, 5, 5, 5)


def test_a_list_has_one_value_per_block() -> None:
    config = unflatten({"model.blocks": 2, "model.filters": [8, 24]})
    assert config.model.filters == (8, 24)


def test_the_value_of_one_block_wins_over_that_of_every_block() -> None:
    config = unflatten({"model.kernel_size": 5, "model.kernel_size.2": 7})
    assert config.model.kernel_size == (5, 7, 5)


def test_blocks_that_the_base_does_not_have_repeat_its_last() -> None:
    base = unflatten({"model.blocks": 3, "model.filters": [8, 16, 24]})
    assert unflatten({"model.blocks": 5}, base).model.filters == (8, 16, 24, 24, 24)
    assert unflatten({"model.blocks": 1}, base).model.filters == (8,)


def test_whole_numbers_are_taken_for_floats_and_whole_floats_for_integers() -> None:
    config = unflatten({"optimizer.learning_rate": 1, "training.epochs": 3.0})
    assert (config.optimizer.learning_rate, type(config.optimizer.learning_rate)) == (1.0, float)
    assert (config.training.epochs, type(config.training.epochs)) == (3, int)


def test_describe_says_what_every_active_hyperparameter_means() -> None:
    rows = list(describe(TrialConfig()))
    assert {name: value for name, value, _ in rows} == flatten(TrialConfig())
    assert ("optimizer.learning_rate", 0.003, "peak learning rate") in rows


# ---- what a user got wrong ----


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"optimizer.name": "adamm"}, r"optimizer\.name must be one of sgd, .*'adamm'.*Did you mean 'adam'\?"),
        ({"model.activation": "leaky-relu"}, r"got 'leaky-relu'.*Did you mean 'leaky_relu'\?"),
        ({"loss.name": "crossentropy"}, r"Did you mean 'cross_entropy'\?"),
        ({"model.kernel_size": 4}, r"model\.kernel_size must be 1 to 15, in steps of 2, but got 4"),
        ({"model.kernel_size.2": 17}, r"model\.kernel_size must be 1 to 15.*got 17"),
        ({"model.filters": 0}, r"model\.filters must be 1 to 2048.*got 0"),
        ({"model.blocks": 6}, r"model\.blocks must be 1 to 5"),
        ({"model.blocks": 2, "model.filters": [8, 8, 8]}, r"model\.filters has one value per block, .*3 values for 2"),
        ({"model.blocks": 2, "model.filters.3": 8}, r"model\.filters\.3: the network has 2 blocks"),
        ({"model.filters.0": 8}, "blocks are numbered 1 to 5"),
        ({"model.filters.6": 8}, "blocks are numbered 1 to 5"),
        ({"model.batch_norm": 1}, r"model\.batch_norm must be one of False, True, but got 1"),
        ({"model.batch_norm": "yes"}, r"model\.batch_norm must be one of False, True, but got 'yes'"),
        ({"model.dropout": 0.95}, r"model\.dropout must be 0 to 0\.9, but got 0\.95"),
        ({"model.dropout": float("nan")}, r"model\.dropout must be 0 to 0\.9, but got nan"),
        ({"optimizer.learning_rate": "fast"}, r"optimizer\.learning_rate must be .* but got 'fast'"),
        ({"optimizer.learning_rate": True}, r"optimizer\.learning_rate must be .* but got True"),
        ({"optimizer.learning_rate": -0.1}, r"optimizer\.learning_rate must be .* but got -0\.1"),
        ({"training.epochs": 2.5}, r"training\.epochs must be .* but got 2\.5"),
        ({"training.epochs": True}, r"training\.epochs must be .* but got True"),
        ({"training.seed": -1}, r"training\.seed must be .* but got -1"),
    ],
)
def test_a_wrong_value_is_answered_with_the_rule(flat: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unflatten(flat)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("model.kernal_size", "model.kernel_size"),
        ("model.kernel_sizes", "model.kernel_size"),
        ("training.learning_rate", "optimizer.learning_rate"),
        ("optimizer.weigth_decay", "optimizer.weight_decay"),
        ("batch_norm", "model.batch_norm"),
        ("optimizr.name", "optimizer.name"),
        ("schedul.name", "schedule.name"),
        ("losss.name", "loss.name"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"There is no hyperparameter {word!r}. Did you mean {meant!r}?"):
        unflatten({word: 1})


def test_nothing_is_proposed_for_a_word_that_is_like_none() -> None:
    assert nearest("xyz", ["optimizer.name", "model.blocks"]) == ""
    with pytest.raises(ValueError, match="There is no hyperparameter 'xyz'"):
        parameter("xyz")


NONSENSE = [float("inf"), float("nan"), 10**400, None, [], {}, "", b"3", (3,)]


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: f"{value!r:.8}")
@ALL
def test_nonsense_is_answered_with_the_hyperparameter_that_it_was_meant_for(p: Parameter, value: Any) -> None:
    with pytest.raises(ValueError, match=p.name):
        unflatten({p.name: value})


def test_a_configuration_has_one_value_per_block() -> None:
    with pytest.raises(ValueError, match=r"model\.kernel_size has one value per block, but got 3 values .* = 2"):
        TrialConfig(model=ModelConfig(blocks=2))


def test_a_configuration_that_is_built_directly_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.name must be"):
        TrialConfig(optimizer=OptimizerConfig(name="sdg"))


# ---- the declarations ----


@ALL
def test_every_default_lies_in_its_domain(p: Parameter) -> None:
    defaults = p.default if p.per_block else (p.default,)
    assert all(p.domain.allows(v) and type(v) is p.type for v in defaults)
    assert not p.per_block or len(defaults) == ModelConfig().blocks


@ALL
def test_every_value_that_is_searched_is_allowed(p: Parameter) -> None:
    search = p.domain.search
    if isinstance(search, Between | ByValue):
        assert isinstance(p.domain, Between)
        for range_ in search.ranges.values() if isinstance(search, ByValue) else [search]:
            assert p.domain.low <= range_.low < range_.high <= p.domain.high
            assert range_.log == p.domain.log
            assert not range_.log or range_.low > 0
            assert range_.step == p.domain.step
    elif search is not None:
        assert all(p.domain.allows(v) and type(v) is p.type for v in search)
        assert len(set(search)) == len(search)


@ALL
def test_a_search_that_depends_on_another_hyperparameter_has_a_range_for_each_of_its_values(p: Parameter) -> None:
    if isinstance(p.domain.search, ByValue):
        other = parameter(p.domain.search.name)
        assert isinstance(other.domain, OneOf)
        assert set(p.domain.search.ranges) == set(other.domain.values)
        assert parameters().index(other) < parameters().index(p)


@ALL
def test_a_condition_refers_to_an_earlier_hyperparameter_and_its_values(p: Parameter) -> None:
    if p.condition is not None:
        names = [q.name for q in parameters()]
        assert names.index(p.condition.name) < names.index(p.name)
        assert all(parameter(p.condition.name).domain.allows(v) for v in p.condition.values)


@ALL
def test_every_hyperparameter_has_a_meaning_in_one_line(p: Parameter) -> None:
    assert p.doc
    assert "\n" not in p.doc
    assert len(p.doc) <= 100


def test_names_are_unique() -> None:
    names = [p.name for p in parameters()]
    assert len(set(names)) == len(names)
    assert parameter("model.filters") is parameter(f"model.filters.{MAX_BLOCKS}")


@pytest.mark.parametrize(
    ("domain", "allowed", "refused"),
    [
        (OneOf((False, True)), [False, True], [0, 1, "True", None]),
        (OneOf((1, 2)), [1, 2], [True, 1.0, 3, "1"]),
        (Between(1, 15, 2), [1, 3, 15], [0, 2, 14, 17, True, "3", float("nan")]),
        (Between(0.0, 0.9), [0.0, 0.9, 0.45], [-0.1, 0.91, False, float("nan"), float("inf")]),
    ],
    ids=str,
)
def test_a_domain_allows_its_values_and_no_others(
    domain: OneOf | Between, allowed: list[Any], refused: list[Any]
) -> None:
    assert all(domain.allows(v) for v in allowed)
    assert not any(domain.allows(v) for v in refused)


# ---- presets ----


def recipe(blocks: list[tuple[int, int, bool]], channels: int, size: int, classes: int, dense: int, same: bool) -> int:
    """The parameters of (filters, kernel size, pooled) blocks, a dense layer and a classifier, counted by hand."""
    total = 0
    for filters, kernel, pooled in blocks:
        total += channels * filters * kernel**2 + filters
        size = size if same else size - kernel + 1
        size = size // 2 if pooled else size
        channels = filters
    total += channels * size**2 * dense + dense
    return total + dense * classes + classes


def fast(whitened: int, *filters: int) -> int:
    """Two 3x3 convolutions per block without bias, each normalised, behind fixed whitening; and a classifier of ten classes."""
    inputs = (whitened, *filters)
    kernels = sum(9 * filters[i] * (inputs[i] + filters[i]) for i in range(len(filters)))
    return kernels + 2 * 2 * sum(filters) + 10 * filters[-1] + 10


KERAS_3 = [(32, 3, True), (64, 3, True), (64, 3, False)]


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        # 93,322 and 122,570 are what Keras's model.summary() prints for the two recipes.
        ("mnist-3conv", (1, 28, 28), 93_322),
        ("mnist-3conv", (1, 28, 28), recipe(KERAS_3, 1, 28, 10, 64, same=False)),
        ("cifar-3conv", (3, 32, 32), 122_570),
        ("cifar-3conv", (3, 32, 32), recipe(KERAS_3, 3, 32, 10, 64, same=False)),
        ("mnist-1conv", (1, 28, 28), recipe([(32, 3, True)], 1, 28, 10, 128, same=False)),
        ("cifar-2conv", (3, 32, 32), recipe([(32, 3, True), (64, 3, True)], 3, 32, 10, 128, same=True)),
        ("mnist-fast", (1, 28, 28), fast(8, 16, 32, 64)),
        ("cifar10-fast", (3, 32, 32), fast(24, 24, 48, 96)),
    ],
)
def test_a_preset_has_as_many_parameters_as_its_recipe(
    name: str, image_shape: tuple[int, int, int], expected: int
) -> None:
    channels = image_shape[0]
    model = build_model(preset(name).model, image_shape, 10, [0.0] * channels, [1.0] * channels)
    assert parameter_count(model) == expected


@pytest.mark.parametrize("name", ["mnist-3conv", "mnist-1conv", "cifar-3conv"])
def test_the_keras_presets_train_as_keras_does(name: str) -> None:
    config = preset(name)
    assert config.optimizer == OptimizerConfig(name="adam", learning_rate=0.001)
    assert config.schedule.name == "constant"
    assert config.loss == LossConfig()
    assert config.model.padding == "valid"
    assert not config.model.batch_norm
    assert config.model.dropout == 0


def test_the_presets_have_the_batch_sizes_and_epochs_of_their_recipes() -> None:
    found = {name: (c.training.batch_size, c.training.epochs) for name, c in PRESETS.items()}
    assert found == {
        "default": (128, 10),
        "mnist-3conv": (32, 5),
        "mnist-1conv": (128, 10),
        "cifar-3conv": (32, 10),
        "cifar-2conv": (32, 10),
        "mnist-fast": (256, 6),
        "cifar10-fast": (256, 8),
        "mnist-rnn": (128, 5),
        "mnist-transformer": (128, 5),
        "mnist-resnet18": (128, 5),
        "faces-cnn": (32, 40),
    }


def test_cifar_2conv_trains_with_plain_momentum() -> None:
    expected = OptimizerConfig(name="sgd", learning_rate=0.001, momentum=0.9, nesterov=False)
    assert preset("cifar-2conv").optimizer == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_flat_form(name: str) -> None:
    assert unflatten(flatten(preset(name))) == preset(name)


def test_the_default_preset_is_the_default_configuration() -> None:
    assert preset("default") == TrialConfig()
    assert preset("default").training == TrainingConfig()


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"There is no preset 'mnist-3con'\. Did you mean 'mnist-3conv'\? Presets: def"
    ):
        preset("mnist-3con")
