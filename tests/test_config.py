import json
import re

import pytest

from cluster.config import KEYS, SweepConfig, make_config, parse_duration, read_sweep_file
from cluster.options import assignments
from cluster.space import Choice
from trainer.hyperparameters import parameters
from trainer.named_data import NAMES
from trainer.presets import PRESETS

FIXED = {p.name: p.default[0] if p.per_block else p.default for p in parameters() if p.section != "training"}


def config(**settings):
    return make_config({"name": "s", "data": "digits"} | settings)


def test_a_configuration_survives_json():
    one = config(
        trials=3, space={"model.kernel_size": [3, 5], "optimizer.learning_rate": {"low": 0.1, "high": 1}}, workers=2
    )
    assert SweepConfig.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_sweep_file_says_the_same_as_options(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("data: digits\nname: s\ntrials: 7\ntime-budget: 2m\nspace:\n  model.kernel_size: [3, 5]\n")
    expected = config(trials=7, time_budget=120, space={"model.kernel_size": [3, 5]})
    assert make_config(read_sweep_file(file)) == expected


def test_a_time_budget_alone_leaves_the_number_of_trials_open():
    assert config(time_budget="30m").trials is None
    assert config(time_budget="30m", trials=4).trials == 4


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86400), (45, 45)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trials": 0}, "trials must be at least 1, but got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"trials": "many"}, "trials must be a whole number, but got 'many'"),
        ({"trials": True}, "trials must be a whole number"),
        ({"time_budget": "soon"}, "such as 30m, but got 'soon'"),
        ({"time_budget": 0}, "longer than 0"),
        ({"name": "a/b"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"data": "minst"}, "Did you mean 'mnist'"),
        ({"sampler": "tpee"}, "Did you mean 'tpe'"),
        ({"pruner": "hyperband"}, "halving, median, none"),
        ({"preset": "mnist-2conv"}, "Did you mean 'mnist-"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker must be 0 or more"),
        ({"validation_fraction": 1.5}, "between 0 and 1"),
        ({"image_size": 2}, "4 to 1024"),
        ({"space": {"model.kernel_sizes": 3}}, "Did you mean 'model.kernel_size'"),
        ({"space": {"optimizer.name": ["sgd", "adamm"]}}, "Did you mean 'adam"),
        ({"space": {"training.epochs": 4}}, "the sweep's own"),
        ({"sampler": "grid"}, "A grid needs a list of values"),
    ],
)
def test_a_mistake_is_answered_with_the_rule_and_what_was_given(settings, words):
    with pytest.raises(ValueError, match=r".") as error:
        config(**settings)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [", "line 1, column 8 is not YAML"),
        ("- 1\n- 2\n", "must hold settings"),
        ("", "must hold settings"),
        ("data: digits\ntrails: 4\n", "Did you mean 'trials'"),
        ("data: digits\nspace: [1]\n", "space must be a mapping"),
    ],
)
def test_a_malformed_sweep_file_is_named(tmp_path, text, words):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.yaml") as error:
        read_sweep_file(file)
    assert words in str(error.value)


def test_numbers_are_written_as_people_write_them(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "space: {optimizer.learning_rate: {low: 1e-4, high: 5E-2}, optimizer.weight_decay: [.5e-3, 0]}\ntrials:\n"
    )
    settings = read_sweep_file(file)
    assert settings == {
        "space": {
            "optimizer.learning_rate": {"low": 1e-4, "high": 0.05},
            "optimizer.weight_decay": [5e-4, 0],
        }
    }
    assert assignments(["optimizer.weight_decay=1e-5", "model.activation=1e"]) == {
        "optimizer.weight_decay": 1e-5,
        "model.activation": "1e",
    }


def test_a_grid_has_as_many_trials_as_it_has_combinations():
    space = FIXED | {"training.batch_size": [32, 64, 128], "model.activation": ["relu", "gelu"]}
    grid = {"sampler": "grid", "space": space, "preset": "none"}
    assert config(**grid, trials=None).trials == 6
    assert config(**grid, trials=100).trials == 6
    assert config(**grid, trials=4).trials == 4
    assert config(**(grid | {"preset": "default"}), trials=100).trials == 7


def test_a_grid_without_end_is_refused():
    with pytest.raises(ValueError, match="A grid may have 10,000 combinations"):
        config(sampler="grid", space=FIXED | {"model.blocks": 5, "model.filters": list(range(1, 40))})


def test_a_missing_sweep_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_sweep_file(tmp_path / "none.yaml")


def test_a_mirrored_digit_is_not_searched_unless_the_user_says_so():
    assert config().build_space().domains["augmentation.flip"] == Choice((False,))
    mine = config(space={"augmentation.flip": [True, False]})
    assert mine.build_space().domains["augmentation.flip"] == Choice((True, False))
    assert config(data="cifar10").build_space().domains["augmentation.flip"] == Choice((True,))
    assert config(data="svhn").build_space().domains["augmentation.flip"] == Choice((False,))
    assert config(data="svhn").build_space().domains["model.test_time_flip"] == Choice((False,))


@pytest.mark.parametrize("data", [name for name, known in NAMES.items() if known.recipe])
def test_a_well_known_data_set_is_searched_around_its_recipe(data):
    chosen = config(data=data, epochs=3, seed=5)
    recipe = chosen.recipe_trial()
    assert (recipe.training.epochs, recipe.training.seed) == (3, 5)
    assert recipe.model.filters == PRESETS[NAMES[data].recipe].model.filters
    assert recipe.augmentation.flip == (data in ("cifar10", "cifar100"))
    assert chosen.build_space().domains["model.blocks"] == Choice((3,))
    assert chosen.trials_before_grid() == 2


def test_the_users_space_wins_over_the_recipes_and_may_leave_the_recipe_out():
    mine = config(data="cifar10", space={"model.filters": [8, 16], "model.kernel_size.2": 7})
    domains = mine.build_space().domains
    assert domains["model.filters.3"] == Choice((8, 16))
    assert domains["model.kernel_size.2"] == Choice((7,))
    assert domains["model.kernel_size.1"] == Choice((3, 5))
    assert mine.recipe_trial() is None
    assert config(data="cifar10", space={"model.blocks": [2, 3]}).recipe_trial() is not None


def test_who_names_a_preset_or_wants_one_trial_gets_no_recipe():
    assert config(data="cifar10", preset="cifar-3conv").recipe_trial() is None
    assert config(data="cifar10", trials=1).recipe_trial() is None
    assert config(data="digits").recipe_trial() is None


def test_the_baseline_is_the_preset_of_the_data_unless_told_otherwise():
    assert config(data="mnist").baseline == "mnist-3conv"
    assert config(data="cifar10").baseline == "cifar-3conv"
    assert config(data="mnist", preset="mnist-1conv").baseline == "mnist-1conv"
    assert config(data="mnist", preset="none").baseline is None


def test_every_setting_has_a_type():
    from cluster.config import _TYPES

    assert set(_TYPES) == set(KEYS)


def test_the_first_trials_differ_from_the_preset_in_what_they_say():
    first = [{"model.kernel_size": 5}, {"model.blocks": 1, "model.filters": [7]}]
    one, other = config(epochs=2, first=first).first_trials()
    assert (one.model.kernel_size, one.model.filters, one.training.epochs) == ((5, 5, 5), (32, 64, 64), 2)
    assert (other.model.kernel_size, other.model.filters) == ((3,), (7,))
    assert config(preset="mnist-1conv", first=[{}]).first_trials()[0].model.dense_units == 128


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        ([{"model.kernel": 3}], "model.kernel_size"),
        ([{"training.epochs": 3}], "part of `first`"),
        ([3], "first: 1. must map"),
        ([{}] * 20, "trials must be at least 21"),
    ],
)
def test_first_trials_that_are_none_are_refused(first, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        config(first=first)
