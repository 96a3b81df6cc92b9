import itertools

import optuna
import pytest

from cluster.space import Choice, Space
from trainer.hyperparameters import TrialConfig, flatten, parameters, unflatten
from trainer.presets import PRESETS

FIXED_EPOCHS = {"training.epochs": 3}


def everything_fixed_but(**searched):
    """A space of the defaults, in which only the given hyperparameters (dots as __) are searched."""
    defaults = {p.name: p.default[0] if p.per_block else p.default for p in parameters()}
    return Space(defaults | {name.replace("__", "."): values for name, values in searched.items()}, {})


def test_every_suggestion_is_a_valid_configuration_that_is_recorded_as_it_is():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    space = Space({}, FIXED_EPOCHS)
    for _ in range(40):  # beyond the start-up trials, so that TPE meets ranges that differ between optimizers
        trial = study.ask()
        config = space.suggest(trial)
        flat = flatten(config)
        assert unflatten(flat) == config
        assert all(flat[name] == value for name, value in trial.params.items())
        study.tell(trial, flat["optimizer.learning_rate"])
    assert len({t.params["optimizer.name"] for t in study.trials}) >= 3


def test_a_hyperparameter_without_effect_is_not_suggested():
    study = optuna.create_study()
    trial = study.ask()
    Space({"optimizer.name": "adam", "loss.name": "focal", "model.blocks": 2}, {}).suggest(trial)
    assert "optimizer.momentum" not in trial.params
    assert "loss.label_smoothing" not in trial.params
    assert "loss.gamma" in trial.params
    assert "model.filters.2" in trial.params
    assert "model.filters.3" not in trial.params


def test_a_list_a_range_and_a_scalar_narrow_the_space():
    narrowing = {
        "model.kernel_size": [3, 5],
        "model.kernel_size.1": 7,
        "optimizer.learning_rate": {"low": 0.01, "high": 0.02, "log": True},
        "model.batch_norm": True,
    }
    study = optuna.create_study()
    for _ in range(10):
        flat = flatten(Space(narrowing, {}).suggest(study.ask()))
        assert flat["model.kernel_size.1"] == 7
        assert flat["model.kernel_size.2"] in (3, 5)
        assert 0.01 <= flat["optimizer.learning_rate"] <= 0.02
        assert flat["model.batch_norm"] is True


def test_whole_numbers_in_a_range_stay_whole():
    study = optuna.create_study()
    for _ in range(10):
        flat = flatten(Space({"model.filters": {"low": 8, "high": 64, "log": True}}, {}).suggest(study.ask()))
        assert all(isinstance(v, int) and 8 <= v <= 64 for k, v in flat.items() if k.startswith("model.filters"))


def test_a_grid_has_every_combination_once_and_skips_what_has_no_effect():
    space = everything_fixed_but(
        model__blocks=[1, 2], model__kernel_size=[3, 5], optimizer__name=["sgd", "adam"], optimizer__momentum=[0.8, 0.9]
    )
    grid = list(space.grid())
    kernels = 2 + 4  # one block, two blocks
    optimizers = 2 + 1  # sgd with each momentum, adam without
    assert len(grid) == kernels * optimizers
    assert all(a != b for a, b in itertools.combinations(grid, 2))
    assert all(flatten(unflatten(flat)) == flat for flat in grid)


def test_what_lies_outside_the_space_is_left_out_of_a_record():
    flat = flatten(PRESETS["mnist-3conv"])
    known = Space({}, FIXED_EPOCHS).part_of(flat)
    assert "training.batch_size" not in known  # 32 is not among the searched sizes
    assert known["optimizer.name"] == "adam"
    assert Space({"optimizer.name": ["sgd", "muon"]}, {}).part_of(flat).get("optimizer.name") is None


def test_a_recorded_configuration_is_what_the_study_holds():
    study = optuna.create_study()
    space, flat = Space({}, {}), flatten(PRESETS["cifar-2conv"])
    study.enqueue_trial(space.part_of(flat))
    trial = study.ask()
    space.record(trial, flat)
    assert trial.params == space.part_of(flat)
    assert trial.params["model.filters.2"] == 64


@pytest.mark.parametrize(
    ("narrowing", "words"),
    [
        ({"model.blocks": 2, "model.filters.3": 16}, "at most 2 blocks"),
        ({"model.filters": []}, "the list of values is empty"),
        ({"model.filters": {"low": 8}}, "expected {low: ..., high: ..."),
        ({"model.filters": {"low": 64, "high": 8}}, "`low <= high` must hold, but got (low=64, high=8)"),
        ({"model.dropout": {"low": 0, "high": 0.5, "log": True}}, "needs `low > 0`"),
        ({"model.kernel_size": {"low": 3, "high": 7, "step": 1}}, "multiple of 2"),
        ({"model.kernel_size": 4}, "1 to 15, in steps of 2, but got 4"),
        ({"model.batch_norm": 1}, "model.batch_norm must be one of False, True, but got 1"),
        ({"optimizer.name": {"low": 1, "high": 2}}, "one of sgd, adam"),
        ({"model.kernel_size.6": 3}, "numbered 1 to 5"),
    ],
)
def test_a_narrowing_that_is_not_allowed_is_refused_with_the_rule(narrowing, words):
    with pytest.raises(ValueError, match=r".") as error:
        Space(narrowing, {})
    assert words in str(error.value)


def test_equal_bounds_fix_a_value():
    assert Space({"model.dropout": {"low": 0.2, "high": 0.2}}, {}).domains["model.dropout"] == Choice((0.2,))


def test_fixed_values_win_over_the_narrowing():
    flat = flatten(Space({}, {"training.epochs": 7, "training.seed": 3}).suggest(optuna.create_study().ask()))
    assert flat["training.epochs"] == 7
    assert flat["training.seed"] == 3


def test_the_defaults_lie_in_the_default_space_as_far_as_they_are_searched():
    searched = set(Space({}, {}).part_of(flatten(TrialConfig())))
    assert {"model.blocks", "model.kernel_size.1", "optimizer.learning_rate", "training.batch_size"} <= searched
