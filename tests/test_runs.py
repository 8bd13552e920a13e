"What a run takes up, and what it does not: progress of other runs, of other data, of damaged files; when it ends."
from dataclasses import replace

import pytest
import torch

from attentiondrop_nb.checks import message
from attentiondrop_nb.training.batches import look_up
from attentiondrop_nb.training.config import make_config
from attentiondrop_nb.training.loop import Trainer, draw_epoch
from attentiondrop_nb.training.runs import _load_progress, _save_progress, other_data, summary, train
from attentiondrop_nb.training.shapes import bars

SMALL = dict(dataset="bars", width=4, epochs=2, batch_size=50, lr=0.05)
CONFIG = make_config(SMALL)


@pytest.fixture(scope="module")
def data():
    return bars()


@pytest.fixture(scope="module")
def record(data):
    return train(CONFIG, data, progress=False).record


def test_progress_is_taken_up_by_the_same_run_alone(tmp_path, data):
    path = tmp_path / "resume.safetensors"
    _save_progress(path, Trainer(CONFIG, data))
    assert _load_progress(path, Trainer(CONFIG, data)) == (True, "")
    assert _load_progress(path, Trainer(make_config(SMALL | {"seed": 1}), data)) == (False, "")


def test_progress_on_other_data_is_an_error(tmp_path, data, record):
    _save_progress(tmp_path / "resume.safetensors", Trainer(CONFIG, data), record["data"])
    relabelled = replace(data, y_train=data.y_train.flip(0))
    assert "digest then" in message(train, CONFIG, relabelled, tmp_path)
    assert other_data(record["data"], relabelled) and not other_data(record["data"], data)


def test_damaged_progress_is_passed_over_and_the_record_says_so(tmp_path, data, capsys):
    path = tmp_path / "resume.safetensors"
    _save_progress(path, Trainer(CONFIG, data))
    path.write_bytes(path.read_bytes()[:-9])
    note = train(CONFIG, data, tmp_path, progress=False).record["environment"]["note"]
    assert "the run began again" in note and note in capsys.readouterr().out


def test_a_part_of_the_training_images_can_be_asked_for(data):
    part = Trainer(make_config(SMALL | {"train_images": 90}), data).data
    assert len(part.x_train) == 90 and len(part.x_test) == 100


def test_without_padding_and_mirroring_a_run_sees_the_images_as_they_are(data):
    for pad in (0, 1):
        trainer = Trainer(make_config(SMALL | {"pad": pad, "mirror": False}), data)
        crops = [look_up(trainer.pixels, *step[1:]) for step in draw_epoch(trainer)]
        order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(trainer.config.seed))
        seen = torch.cat(crops).equal(data.x_train[order][: sum(map(len, crops))])
        assert seen == (pad == 0)


def test_a_run_that_learns_nothing_converges_and_its_last_epoch_is_evaluated(data):
    idle = make_config(SMALL | {"lr": 0.0, "patience": 2, "epochs": 50, "evaluate_every": 40})
    stuck = train(idle, data, progress=False).record
    assert stuck["epochs"][-1]["test_accuracy"] == stuck["best"]["test_accuracy"]
    assert stuck["status"] == "converged" and len(stuck["epochs"]) < 50 and "CONVERGED" in summary(stuck)
