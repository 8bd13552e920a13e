"The unit that papermill repeats: what it writes, and how it refuses bad parameters."
import ast
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import numpy as np
import pytest
from papermill import inspect_notebook

from attentiondrop_nb.training import METHODS, Config, make_config, summary, train

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "nbs" / "experiments" / "train.ipynb"


def papermill(folder, **parameters):
    "Run the notebook as a user would, from `folder`; returns the finished process."
    flags = [text for key, value in parameters.items() for text in ("-p", key, str(value))]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "run.ipynb", "-k", "python3", "--no-progress-bar", "--stdout-file", "-"]
    return subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True, timeout=300)


QUICK = dict(width=4, epochs=1, batch_size=256, out_dir="out")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_its_record_checkpoint_and_curve(tmp_path, method):
    done = papermill(tmp_path, method=method, run_name="quick", **QUICK)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "quick"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.safetensors", "curve.png", "record.json"]
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == {"schema", "parameters", "data", "epochs", "final", "best", "environment", "seconds", "status"}
    assert set(record["parameters"]) == {f.name for f in fields(Config)} and record["parameters"]["method"] == method
    assert record["status"] == "finished" and len(record["epochs"]) == 1
    accuracy = record["final"]["test_accuracy"]
    assert f"test accuracy  {accuracy:.2%}  ({round(accuracy * 360)} of 360 held-out images" in done.stdout
    assert "out/quick/record.json" in done.stdout and "out/quick/curve.png" in done.stdout


@pytest.mark.parametrize(
    "parameters, says",
    [
        (dict(epoch=3), "unknown parameter 'epoch' = 3; did you mean 'epochs'?"),
        (dict(method="dropblok"), "parameter 'method' is 'dropblok'"),
        (dict(dataset="nowhere"), "no data set 'nowhere'"),
        (dict(epochs="1.5"), "parameter 'epochs' is 1.5, a float; int is needed"),
        (dict(device="abacus"), "parameter 'device' is 'abacus'"),
        (dict(run_name=".."), "parameter 'run_name' is '..'"),
    ],
)
def test_bad_parameters_end_the_run_before_anything_is_written(tmp_path, parameters, says):
    done = papermill(tmp_path, **{**QUICK, **parameters})
    assert done.returncode != 0 and says in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run.ipynb"]  # papermill's own file, with the traceback in it


def test_an_npz_trains(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{k}_{s}": v for s in ("train", "test") for k, v in (("x", rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)), ("y", np.arange(64) % 4))}
    np.savez(tmp_path / "noise.npz", **arrays)
    done = papermill(tmp_path, dataset="noise", data_dir=".", **{**QUICK, "batch_size": 32})
    assert done.returncode == 0 and "of 64 held-out images" in done.stdout, done.stderr


def test_a_run_without_git_and_a_diverged_run_are_recorded(monkeypatch):
    monkeypatch.setenv("PATH", "")
    run = train(make_config(dict(width=2, epochs=1, batch_size=512, lr=1e30)), progress=False)
    assert run.record["environment"]["commit"] is None
    assert run.record["status"] == "diverged" and run.record["epochs"][0]["train_loss"] is None
    assert "DIVERGED" in summary(run.record) and json.dumps(run.record, allow_nan=False)


def test_the_notebook_can_be_run_twice_in_one_kernel():
    cells = [c.source for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]
    namespace = {}
    for _ in range(2):
        exec(cells[0], namespace)  # the parameters
        exec(cells[1], namespace)  # the check
        namespace["run"] = namespace["train"](Config(width=2, epochs=1, batch_size=512), progress=False)


def test_parameters_cell_and_config_say_the_same():
    listed = inspect_notebook(str(NOTEBOOK))
    assert list(listed) == [f.name for f in fields(Config)]
    for f in fields(Config):
        assert ast.literal_eval(listed[f.name]["default"]) == f.default, f.name


def test_parameters_are_explained():
    cell = next(c for c in nbformat.read(NOTEBOOK, 4).cells if "parameters" in c.metadata.get("tags", []))
    assert not [line for line in cell.source.splitlines() if "  # " not in line]


@pytest.mark.skipif("ATTENTIONDROP_DATA" not in os.environ, reason="ATTENTIONDROP_DATA is not set: no real CIFAR-10 here")
def test_real_cifar10_loads():
    from attentiondrop_nb.data import channel_stats, load

    data = load("cifar10", os.environ["ATTENTIONDROP_DATA"])
    assert data.x_train.shape == (50000, 3, 32, 32) and data.x_test.shape == (10000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [5000] * 10 and data.y_test.bincount().tolist() == [1000] * 10
    mean, std = channel_stats(data.x_train)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # the values everyone uses
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=1e-4)
