"A stand-in for train.ipynb that trains nothing, so that tests of the scheduler are quick."
import json
import time
from dataclasses import asdict

import nbformat

from attentiondrop_nb.evidence.grids import plan
from attentiondrop_nb.training.config import make_config
from attentiondrop_nb.training.runs import _SCHEMA

PARAMETERS = """
method: str = "ad"
width: int = 4
seed: int = 0
data_dir: str = "data"
out_dir: str = "runs"
run_name: str = None
"""
BODY = """
import json, os, shutil, sys, time
from pathlib import Path

own = json.loads((Path(data_dir) / f"{run_name}.json").read_text())  # what this run is to do, and its record
with open(Path(data_dir) / "starts", "a") as file:
    print(run_name, os.getpid(), file=file, flush=True)
for word in own["do"].split():
    if word == "fail":
        raise ArithmeticError("this run was told to fail")
    if word == "oops":
        raise type("Oops", (Exception,), {})("of no name that ends in Error")
    if word == "crash":
        os.kill(os.getpid(), 9)
    if word == "vanish":
        os._exit(0)
    if word == "write":
        folder = Path(out_dir) / run_name
        (folder / "checkpoint.safetensors").write_text("weights")
        (folder / "record.tmp").write_text(json.dumps(own["record"]))
        (folder / "record.tmp").rename(folder / "record.json")
    if word.startswith("wait"):
        time.sleep(float(word[4:]))
"""


EPOCH = dict(train_loss=1.0, train_accuracy=0.5, test_loss=1.0, test_accuracy=0.5, lr=0.1, alpha=0.0, seconds=1.0)
RECORD = dict(
    schema=_SCHEMA,
    data=dict(train=10, test=10, classes=["a", "b"], mean=[0.5], std=[0.5]),
    epochs=[EPOCH],
    final=dict(test_accuracy=0.5, train_accuracy=0.5),
    best=dict(test_accuracy=0.5),
    environment=dict(device="none", precision="float32"),
    seconds=1.0,
    status="finished",
)


def quick_imports(folder):
    "A PYTHONPATH under which papermill and Ray start in half the time: jsonschema loads a slow grammar."
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('not in these tests')\n")
    return str(folder)


def fake_notebook(folder):
    "Write the notebook into `folder`; returns its path."
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(BODY.strip()),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "fake.ipynb")
    return folder / "fake.ipynb"


def fake_grid(folder, *todo):
    "A grid with a seed for each of `todo`, what its run is to do -> planned runs. Called again, it changes that."
    grid = {
        "name": "fake",
        "defaults": {"width": 4, "data_dir": str(folder)},
        "runs": [{"seed": list(range(len(todo)))}],
    }
    (folder / "grid.yaml").write_text(json.dumps(grid))  # JSON is YAML
    runs = plan(grid, folder / "out")
    for run, do in zip(runs, todo):
        config = make_config(run.parameters)
        record = RECORD | dict(parameters=asdict(config))
        (folder / f"{run.name}.json").write_text(json.dumps(dict(do=do, record=record)))
    return runs


def starts(folder):
    "[(run name, process id of its kernel), ...] of all starts so far."
    file = folder / "starts"
    return (
        [(name, int(pid)) for name, pid in (line.split() for line in file.read_text().splitlines())]
        if file.exists()
        else []
    )


def wait_until(condition, seconds=90):
    "Wait until `condition()` is true; fail after so many seconds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
