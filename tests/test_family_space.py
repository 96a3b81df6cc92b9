"""Families of networks as a hyperparameter, searched and in presets: `python -m pytest tests/test_family_space.py`."""

from __future__ import annotations

import itertools
import shlex
from typing import Any

import optuna
import pytest

from cluster.config import make_config
from cluster.export import training_command
from cluster.options import assignments
from cluster.record import TrialRecord
from cluster.space import Space
from dashboard import trial_tables
from tests.family_networks import BOTH_WAYS, OF_EACH, RNN, TRANSFORMER, Flat
from trainer.data import DataConfig
from trainer.hyperparameters import TrialConfig, flatten, in_short, parameters, refuse_without_effect, unflatten
from trainer.model import build_model, parameter_count
from trainer.presets import PRESETS

# ---- the hyperparameters ----


def test_a_hyperparameter_belongs_to_the_families_that_use_it() -> None:
    def of(family: str) -> set[str]:
        names = flatten(unflatten({"model.family": family}))
        return {name.split(".")[1] for name in names if name.startswith("model.")}

    every = {"family", "dropout", "test_time_flip"}
    assert of("resnet") == every | {"blocks", "kernel_size", "filters", "depth", "activation"}
    assert of("rnn") == every | {"cell", "units", "layers", "bidirectional"}
    assert of("transformer") == every | {"patch_size", "heads", "head_units", "layers", "positions"}
    assert of("torchvision:vgg11") == every | {"pretrained", "input_size"}
    assert not of("convnet") & {"depth", "cell", "units", "layers", "heads", "pretrained"}
    frozen = flatten(unflatten({"model.family": "torchvision:vgg11", "model.pretrained": True}))
    assert "model.frozen_epochs" in frozen


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({}, "kernels 3-3-3, filters 32-64-64, relu, adamw 0.003, batch 128"),
        ({"model.family": "resnet"}, "resnet 2-2-2, kernels 3-3-3, filters 32-64-64, relu, adamw 0.003, batch 128"),
        ({"model.family": "rnn"}, "rnn lstm, 2 x 128 units, adamw 0.003, batch 128"),
        (RNN | BOTH_WAYS, "rnn gru, 2 x 32 units, both ways, adamw 0.003, batch 128"),
        (TRANSFORMER, "transformer, patches 2x2, layers 2, heads 2 x 8, learned, adamw 0.003, batch 128"),
        ({"model.family": "torchvision:resnet18"}, "torchvision:resnet18, adamw 0.003, batch 128"),
        (
            {"model.family": "torchvision:resnet18", "model.pretrained": True},
            "torchvision:resnet18, pretrained, adamw 0.003, batch 128",
        ),
    ],
)
def test_a_configuration_in_short_says_what_tells_its_family_apart(flat: Flat, words: str) -> None:
    assert in_short(flatten(unflatten(flat))) == words


def test_a_configuration_from_before_there_were_families_is_a_convnets() -> None:
    flat = flatten(TrialConfig())
    old = {name: value for name, value in flat.items() if name != "model.family"}
    assert unflatten(old) == TrialConfig()
    assert in_short(old) == in_short(flat)
    space = Space({"model.family": ["convnet", "rnn"]}, {"training.epochs": 10, "training.seed": 0})
    assert space.part_of(old)["model.family"] == "convnet"
    assert not Space({"model.family": "rnn"}, {}).contains(old)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (
            {"model.family": "torchvision:resnet81"},
            r"torchvision:NAME with one of.*Did you mean 'torchvision:resnet1?.*'\?",
        ),
        (
            {"model.family": "cnn"},
            r"must be one of convnet, resnet, rnn, transformer, torchvision:NAME with one of torch",
        ),
    ],
)
def test_an_unknown_family_is_answered_without_all_of_torchvisions_names(flat: Flat, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        unflatten(flat)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"model.units": 64}, r"model\.units has an effect only with model\.family = rnn, but here that is convnet"),
        ({"model.family": "rnn", "model.filters": 8}, r"only with model\.family = convnet or resnet, but .* is rnn"),
        ({"model.pretrained": True}, r"only with model\.family = torchvision:NAME, but here that is convnet"),
        (
            {"model.family": "torchvision:vgg11", "model.frozen_epochs": 1},
            r"only with model\.pretrained = true, but here that is False",
        ),
    ],
)
def test_what_has_no_effect_in_a_family_is_refused(flat: Flat, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_without_effect(flat, unflatten(flat))


@pytest.mark.parametrize(
    "flat", [*OF_EACH.values(), {"model.family": "torchvision:resnet18", "model.pretrained": True}]
)
def test_the_command_that_trains_it_again_says_the_same_configuration(flat: Flat) -> None:
    config = unflatten(flat | {"optimizer.learning_rate": 0.01})
    words = shlex.split(training_command(config, DataConfig(data="digits")))
    given = [after for word, after in itertools.pairwise(words) if word == "--set"]
    assert flatten(unflatten(assignments(given))) == flatten(config)


# ---- the search ----


def test_by_default_only_convnets_are_searched() -> None:
    searched = Space({}, {}).searched()
    assert "model.family" not in searched
    assert {"model.blocks", "model.kernel_size.4", "model.head"} <= searched.keys()
    assert not {"model.units", "model.depth.1", "model.heads", "model.frozen_epochs"} & searched.keys()


@pytest.mark.parametrize(
    ("families", "searched", "absent"),
    [
        (["convnet", "resnet"], {"model.family", "model.depth.1", "model.pooling"}, {"model.units"}),
        (
            ["rnn", "transformer"],
            {"model.layers", "model.cell", "model.patch_size"},
            {"model.blocks", "model.filters.1"},
        ),
        (
            ["rnn"],
            {"model.units", "model.cell", "model.layers", "model.bidirectional"},
            {"model.family", "model.heads"},
        ),
        (
            ["torchvision:resnet18", "torchvision:vit_b_16"],
            {"model.family"},
            {"model.pretrained", "model.frozen_epochs"},
        ),
    ],
)
def test_a_space_of_other_families_proposes_valid_configurations_of_them(
    families: list[str], searched: set[str], absent: set[str]
) -> None:
    space = Space({"model.family": families}, {"training.epochs": 3})
    assert searched <= space.searched().keys()
    assert not absent & space.searched().keys()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    seen = set()
    for _ in range(25):
        trial = study.ask()
        config = space.suggest(trial)
        flat = flatten(config)
        assert unflatten(flat) == config
        assert trial.params == space.part_of(flat)
        assert space.contains(flat)
        seen.add(config.model.family)
        study.tell(trial, float(flat["optimizer.learning_rate"]))
    assert seen == set(families)


def test_frozen_epochs_are_searched_with_pretrained_networks() -> None:
    space = Space({"model.family": "torchvision:resnet18", "model.pretrained": [False, True]}, {})
    assert "model.frozen_epochs" in space.searched()
    narrow = Space({"model.family": "torchvision:resnet18", "model.pretrained": True}, {})
    assert "model.frozen_epochs" in flatten(narrow.suggest(optuna.create_study().ask()))


def test_a_grid_over_families_has_each_ones_combinations() -> None:
    fixed = {p.name: p.default[0] if p.per_block else p.default for p in parameters()}
    wanted = {
        "model.family": ["convnet", "resnet", "rnn"],
        "model.blocks": [1, 2],
        "model.filters": [8, 16],
        "model.units": [4, 8],
    }
    grid = list(Space(fixed | wanted, {}).grid())
    assert len(grid) == 2 * (2 + 4) + 2
    assert all(flatten(unflatten(flat)) == flat for flat in grid)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"model.units": [64, 128]},
            r"model\.units has an effect only with model\.family = rnn, but here that is convnet",
        ),
        ({"model.units": 64}, r"model\.units has an effect only with model\.family = rnn"),
        (
            {"model.family": ["rnn", "transformer"], "model.filters.2": 8},
            r"= convnet or resnet, but .* is rnn, transformer",
        ),
    ],
)
def test_searching_what_belongs_to_another_family_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config({"name": "s", "data": "digits", "space": space})


def test_a_sweep_over_other_families_leaves_the_recipe_out_and_keeps_the_baseline() -> None:
    config = make_config({"name": "s", "data": "mnist", "space": {"model.family": ["resnet", "rnn"]}})
    assert config.recipe_trial() is None
    assert config.baseline == "mnist-3conv"
    both = make_config({"name": "s", "data": "mnist", "space": {"model.family": ["convnet", "rnn"]}})
    assert both.recipe_trial() is not None


def test_a_first_trial_may_be_of_another_family_than_the_preset() -> None:
    first: list[Any] = [{"model.family": "rnn", "model.units": 16}]
    (config,) = make_config({"name": "s", "data": "digits", "first": first}).first_trials()
    assert (config.model.family, config.model.units) == ("rnn", 16)
    assert flatten(unflatten(flatten(config))) == flatten(config)


def test_a_trials_page_says_of_any_family_what_it_is_in_short() -> None:
    summary = trial_tables.summary(TrialRecord(0, "COMPLETE", 0.5, config=flatten(unflatten(RNN))))
    assert summary == ["rnn lstm, 1 x 32 units, adamw 0.003, batch 128"]


# ---- presets ----


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mnist-rnn", (1, 28, 28), 4 * 128 * (28 + 128 + 2) + 128 * 10 + 10),
        (
            "mnist-transformer",
            (1, 28, 28),
            (49 * 64 + 64)
            + 16 * 64
            + 3 * (2 * 128 + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64)
            + 128
            + 650,
        ),
        ("mnist-resnet18", (1, 28, 28), 11_689_512 - 513 * 1000 + 513 * 10),  # torchvision's, for ten classes
        ("faces-cnn", (1, 64, 64), 9 * (32 + 32 * 64 + 64 * 128 + 128 * 128) + 2 * 352 + 128 * 40 + 40),
        ("faces-cnn", (3, 64, 64), 9 * (96 + 32 * 64 + 64 * 128 + 128 * 128) + 2 * 352 + 128 * 40 + 40),
    ],
)
def test_the_new_presets_have_the_parameters_of_their_layers(
    name: str, shape: tuple[int, int, int], expected: int
) -> None:
    classes = 40 if name == "faces-cnn" else 10
    model = build_model(PRESETS[name].model, shape, classes, [0.0] * shape[0], [1.0] * shape[0])
    assert parameter_count(model) == expected
