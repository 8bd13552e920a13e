"Parameters of a run and of a notebook: what is said of bad ones (the lesson shows it, this tests each word)."
import pytest

from attentiondrop_nb.checks import message
from attentiondrop_nb.training.config import check_datasets, check_parameters, make_config

SAID = [
    ({"epoch": 3}, "did you mean 'epochs'?"),
    ({"method": "dropblok"}, "did you mean 'dropblock'?"),
    ({"drop_after": ""}, "'drop_after' is ''"),
    ({"method": "none", "alpha": 0.1}, "method 'none' does not use it"),
    ({"beta": 0.0}, "beta is 0.0"),
    ({"method": "released", "beta": 20.0}, "0 <= beta < 1"),
    ({"out_dir": ""}, "'out_dir' is ''"),
    ({"milestones": 0.5}, "write '0.5', with its quotes"),
]


@pytest.mark.parametrize("values, says", SAID)
def test_a_bad_value_is_named(values, says):
    assert says in message(make_config, values)


def test_a_huge_value_does_not_make_a_huge_sentence():
    bomb = [0] * 999
    for _ in range(9):
        bomb = [bomb] * 999
    assert len(message(make_config, {"seed": bomb})) < 99_999


def test_all_faults_are_said_at_once():
    together = message(make_config, {"epoch": 3, "width": 0, "method": "dropblok"})
    assert all(word in together for word in ("'epoch'", "'width'", "'dropblok'")) and together.count("\n") == 2


GOOD = dict(records_dir="records", n_images=3, device=None)
KINDS = dict(records_dir=str, n_images=int, device=str | None)
WRONG = {
    "'n_images' is '3'": {"n_images": "3"},
    "unknown parameter 'colour'": {"colour": "red"},
    "'records_dir' is 1": {"records_dir": 1},
    "did you mean 'n_images'?": {"n_image": 3},
    "'n_images' is missing": {"n_images": None},
}


def test_good_parameters_of_a_notebook_are_taken():
    check_parameters(GOOD, **KINDS)


@pytest.mark.parametrize("says", WRONG)
def test_a_bad_parameter_of_a_notebook_is_named(says):
    changed = {k: value for k, value in (GOOD | WRONG[says]).items() if value is not None or k == "device"}
    assert says in message(check_parameters, changed, **KINDS)


def test_datasets_are_those_with_records():
    for value in ("cifar10", " "):
        assert repr(value) in message(check_datasets, "datasets", value, ["svhn"], [])
    mine = [{"parameters": {"dataset": "mine"}}]
    assert check_datasets("datasets", "cifar10 mine", ["cifar10"], mine) == ["cifar10", "mine"]
