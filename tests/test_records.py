"The records and grids in git keep their meaning: a change of the code must not orphan a run that was made."
import json
from dataclasses import asdict

import pytest
from checkout import ROOT, files

from attentiondrop_nb.evidence.grids import plan, read_grid
from attentiondrop_nb.training.config import Config, is_same_run, make_config, run_name
from attentiondrop_nb.training.runs import read_record

RECORDS = files("nbs/experiments/records", ".json")
GRIDS = files("nbs/experiments/grids", ".yaml")


def test_there_are_records():
    assert len(RECORDS) >= 70


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_can_be_read_and_its_parameters_give_its_name(path):
    record = read_record(path)
    config = Config(**record["parameters"])
    assert run_name(config) == path.stem
    places = {"data_dir", "device", "out_dir", "run_name"}
    again = make_config({name: value for name, value in record["parameters"].items() if name not in places})
    assert is_same_run(record["parameters"], again) and run_name(again) == path.stem


def test_a_record_that_names_the_default_of_a_new_parameter_is_the_same_run():
    old = next(path for path in RECORDS if path.parent.name == "underfit")
    parameters = json.loads(old.read_text())["parameters"]
    assert not {"evaluate_every", "pad"} & parameters.keys()
    config = Config(**parameters)
    for name, default, other in (("evaluate_every", 1, 10), ("pad", 4, 0)):
        assert run_name(Config(**parameters | {name: default})) == run_name(config)
        assert run_name(Config(**parameters | {name: other})) != run_name(config)
        assert not is_same_run(parameters, Config(**parameters | {name: other}))


def test_a_record_that_spells_its_options_otherwise_is_the_same_run():
    parameters = asdict(make_config({}))
    for spelling in (dict(drop_after="layer2  layer1"), dict(milestones=".8 .6 0.40")):
        assert is_same_run(parameters | spelling, make_config({}))
        assert run_name(Config(**parameters | spelling)) == run_name(make_config({}))
    assert not is_same_run(parameters | dict(drop_after="layer2"), make_config({}))
    assert not is_same_run(parameters | dict(milestones="0.4 0.4 0.6 0.8"), make_config({}))  # it falls twice there


def test_a_grid_may_spell_a_parameter_in_two_ways_and_has_one_run():
    grid = {"runs": [{"drop_after": ["layer1 layer2", "layer2 layer1", "layer1  layer2 layer1"]}]}
    assert len(plan(grid)) == 1
    (run,) = plan(grid | {"exclude": [{"seed": 7}], "runs": [{"seed": [1, 7]}]})
    assert run.parameters["seed"] == 1


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_in_git_can_be_expanded(path):
    runs = plan(read_grid(path))
    assert runs and len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("name", ["cifar10_cpu", "ablations_cpu", "shapes"])
def test_the_runs_of_a_grid_that_was_run_are_in_git(name):
    kept = {path.stem for path in RECORDS}
    grid = read_grid(ROOT / "nbs" / "experiments" / "grids" / f"{name}.yaml")
    assert {run.name for run in plan(grid)} <= kept
