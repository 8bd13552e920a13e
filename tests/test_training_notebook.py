"The unit that papermill repeats: what it writes, and how it refuses bad parameters."
import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from papermill import inspect_notebook
from torch._dynamo.testing import CompileCounter

from attentiondrop_nb.speed import profile
from attentiondrop_nb.speed.profile import profile_epoch
from attentiondrop_nb.training import loop
from attentiondrop_nb.training.batches import normalize
from attentiondrop_nb.training.config import Config, make_config, run_name
from attentiondrop_nb.training.datasets import load
from attentiondrop_nb.training.loop import Trainer, draw_epoch, evaluate, train_epoch
from attentiondrop_nb.training.runs import load_run, read_record, summary, train

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "nbs" / "experiments" / "train.ipynb"


def papermill(folder, **parameters):
    "Run the notebook as a user would, from `folder`; returns the finished process."
    flags = [text for key, value in parameters.items() for text in ("-p", key, str(value))]
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOK),
        "run.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
        "--stdout-file",
        "-",
    ]
    return subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True, timeout=300)


QUICK = dict(width=4, epochs=1, batch_size=256, out_dir="out")
FAST = dict(width=2, epochs=3, batch_size=128, train_images=256)


@pytest.mark.whole
@pytest.mark.parametrize("method, cutout", [("ad", True), ("dropblock", False)])
def test_a_run_writes_its_record_checkpoint_and_curve(tmp_path, method, cutout):
    done = papermill(tmp_path, method=method, cutout=cutout, run_name="quick", **QUICK)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "quick"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.safetensors", "curve.png", "record.json"]
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == {
        "schema",
        "parameters",
        "data",
        "epochs",
        "final",
        "best",
        "environment",
        "seconds",
        "status",
        "checksums",
    }
    assert set(record["parameters"]) == {f.name for f in fields(Config)} and record["parameters"]["method"] == method
    assert record["status"] == "finished" and len(record["epochs"]) == 1
    accuracy = record["final"]["test_accuracy"]
    assert f"test accuracy  {accuracy:.2%}  ({round(accuracy * 360)} of 360 held-out images" in done.stdout
    assert "out/quick/record.json" in done.stdout and "out/quick/curve.png" in done.stdout
    kept = nbformat.read(tmp_path / "run.ipynb", 4)
    assert any("image/png" in o.get("data", {}) for c in kept.cells for o in c.get("outputs", [])), (
        "the live curve is missing"
    )
    model, again = load_run(folder)
    data = load("digits")
    stats = [torch.tensor(again["data"][k]) for k in ("mean", "std")]
    assert evaluate(model, data.x_test, data.y_test, stats)[1] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.whole
def test_an_unknown_parameter_of_which_papermill_only_warns_ends_the_run(tmp_path):
    done = papermill(tmp_path, epoch=3, **QUICK)
    assert done.returncode != 0 and "unknown parameter 'epoch' = 3; did you mean 'epochs'?" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run.ipynb"]  # papermill's own file, with the traceback in it


@pytest.mark.parametrize(
    "parameters, says",
    [
        (dict(method="dropblok"), "parameter 'method' is 'dropblok'"),
        (dict(dataset="nowhere"), "no data set 'nowhere'"),
        (dict(epochs=1.5), "parameter 'epochs' is 1.5, a float; a valid integer or None is needed"),
        (dict(device="abacus"), "parameter 'device' is 'abacus'"),
        (dict(run_name=".."), "parameter 'run_name' is '..'"),
        (dict(method="none", alpha=0.1), "parameter 'alpha' is 0.1, but method 'none' does not use it"),
        (dict(train_images=5000), "train_images is 5000; digits has 1437 training images"),
    ],
)
def test_bad_parameters_end_the_run_before_anything_is_written(tmp_path, monkeypatch, parameters, says):
    monkeypatch.chdir(tmp_path)
    first, *others = (c.source for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code")
    namespace = {}
    exec(first, namespace)
    namespace |= QUICK | parameters
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        exec("\n".join(others), namespace)
    assert says in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.whole
def test_an_npz_trains(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{k}_{s}": v
        for s in ("train", "test")
        for k, v in (("x", rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)), ("y", np.arange(64) % 4))
    }
    np.savez(tmp_path / "noise.npz", **arrays)
    done = papermill(tmp_path, dataset="noise", data_dir=".", **{**QUICK, "batch_size": 32})
    assert done.returncode == 0 and "of 64 held-out images" in done.stdout, done.stderr


def test_a_run_without_git_and_a_diverged_run_are_recorded(monkeypatch):
    monkeypatch.setenv("PATH", "")
    run = train(make_config(dict(width=2, epochs=5, batch_size=512, lr=1e30)), progress=False)
    assert run.record["environment"]["commit"] is None
    assert run.record["status"] == "diverged" and run.record["epochs"][0]["train_loss"] is None
    assert "DIVERGED" in summary(run.record) and json.dumps(run.record, allow_nan=False)
    assert len(run.record["epochs"]) < 5  # it does not go on with NaN


def test_the_notebook_can_be_run_twice_in_one_kernel():
    cells = [c.source for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]
    namespace = {}
    for _ in range(2):
        exec(cells[0], namespace)  # the parameters
        exec(cells[1], namespace)  # the check
        namespace["run"] = namespace["train"](make_config(dict(width=2, epochs=1, batch_size=512)), progress=False)


def test_parameters_cell_and_config_say_the_same():
    listed = inspect_notebook(str(NOTEBOOK))
    assert list(listed) == [f.name for f in fields(Config)]
    for f in fields(Config):
        assert ast.literal_eval(listed[f.name]["default"]) == f.default, f.name


def test_parameters_are_explained():
    cell = next(c for c in nbformat.read(NOTEBOOK, 4).cells if "parameters" in c.metadata.get("tags", []))
    heads = [line for line in cell.source.splitlines() if line.startswith("# ")]  # of the groups
    assert heads and not [line for line in cell.source.splitlines() if "  # " not in line and line not in heads]


def test_a_broken_record_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "record.json"
    for text, says in (("{", "damaged or not ours"), ("[]", "damaged or not ours"), ('{"schema": 1}', "schema 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=says) as error:
            read_record(path)
        assert str(path) in str(error.value)


def test_a_run_name_does_not_depend_on_where_the_run_is():
    base = run_name(make_config(FAST))
    assert base == run_name(make_config(FAST | dict(out_dir="x", data_dir="y", device="cpu", run_name="z")))
    others = [
        run_name(make_config(FAST | v))
        for v in (dict(lr=0.2), dict(precision="bfloat16"), dict(rescale="none"), dict(cutout_length=8, cutout=True))
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize("method", ["ad", "released", "dropblock"])
def test_a_compiled_run_is_the_same_run_and_does_not_compile_again(monkeypatch, method):
    counter = CompileCounter()  # runs the captured graphs as they are, and counts them
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(
        "attentiondrop_nb.layers.layers._find_fast", lambda *args: None
    )  # the fast code draws other coins
    torch.compiler.reset()
    values = FAST | dict(method=method, train_images=320, epochs=2)  # batches of 128, 128 and 64
    frames = []
    if method == "dropblock":
        values |= dict(block_size=5)
    trainer = Trainer(make_config(values | dict(compile=True)), load("digits"))
    train_epoch(trainer, lambda: frames.append(counter.frame_count))
    eager = Trainer(make_config(values), load("digits"))
    train_epoch(eager)
    for (name, a), b in zip(trainer.model.state_dict().items(), eager.model.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=name)
    evaluate(trainer.model, trainer.data.x_test, trainer.data.y_test, trainer.stats)
    train_epoch(trainer, lambda: frames.append(counter.frame_count))
    assert frames[0] > 0 and set(frames) == {frames[0]}, (
        frames
    )  # lr and α moved, one batch was smaller, and it was in eval mode
    assert frames[0] == 1 or method == "dropblock"  # torchvision's function splits the graph


def test_an_evaluation_does_not_depend_on_the_size_of_its_batches(monkeypatch):
    trainer = Trainer(make_config(FAST), load("digits"))
    found = []
    train_epoch(trainer)  # running means and deviations other than 0 and 1
    for pixels in (1, 100 * 32 * 32, 10**9):  # one image, 100 and 60 more, all of them
        monkeypatch.setattr(loop, "_EVAL_PIXELS", {"cpu": pixels})
        found.append(evaluate(trainer.model, trainer.data.x_test[:160], trainer.data.y_test[:160], trainer.stats))
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] == pytest.approx(found[2], rel=1e-4)
    trainer.model.eval()
    with torch.no_grad():
        chance = trainer.model(normalize(trainer.data.x_test[:160], *trainer.stats)).softmax(1)[
            range(160), trainer.data.y_test[:160]
        ]
    assert found[0][0] == pytest.approx(float(-chance.log().mean()), rel=1e-4)


def test_every_epoch_shows_every_image_once_but_for_a_last_one():
    data = load("digits")
    for n, seen in ((129, 128), (130, 130)):
        trainer = Trainer(make_config(FAST | dict(train_images=n)), data)
        epochs = [draw_epoch(trainer) for _ in range(2)]
        images = [
            torch.cat([starts[:, 0].div(33**2, rounding_mode="floor") for _, starts, _ in batches])
            for batches in epochs
        ]
        assert all(len(set(i.tolist())) == len(i) == seen for i in images) and not images[0].equal(images[1])
        assert all(
            trainer.data.y_train[i].equal(torch.cat([b[0] for b in batches])) for i, batches in zip(images, epochs)
        )


def test_a_cutout_that_is_too_long_for_the_images_is_named():
    trainer = Trainer(make_config(FAST | dict(cutout=True, cutout_length=65)), load("digits"))
    with pytest.raises(ValueError, match="cutout_length is 65, but x has planes of 32×32 pixels: choose at most 64"):
        train_epoch(trainer)


@pytest.mark.parametrize("method", ["none", "ad"])
def test_a_profile_names_all_the_time_and_leaves_no_trace(method):
    trainer = Trainer(make_config(FAST | dict(method=method, width=4)), load("digits"))
    train_epoch(trainer)
    start = time.perf_counter()
    spent = profile_epoch(trainer)
    seconds = (time.perf_counter() - start) / trainer.steps_per_epoch
    assert set(spent) == set(profile.KINDS) and min(spent.values()) >= 0 and sum(spent.values()) <= seconds
    assert (spent["drop layer"] > 0) == (method == "ad") and min(
        spent[k] for k in ("convolution", "batch norm", "images", "optimizer")
    ) > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_mixed_precision_keeps_float32_weights_and_learns():
    run = train(make_config(FAST | dict(precision="bfloat16", width=4, lr=0.05)), progress=False)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32} and run.record["environment"][
        "precision"
    ] == "bfloat16"
    losses = [e["train_loss"] for e in run.record["epochs"]]
    assert losses[-1] < losses[0]
    plain = train(make_config(FAST | dict(width=4, lr=0.05)), progress=False)
    assert (
        plain.record["epochs"][0]["train_loss"] != losses[0] and plain.record["environment"]["precision"] == "float32"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: whether PyTorch waits for it cannot be seen here")
def test_no_step_waits_for_the_gpu():
    trainer = Trainer(make_config(FAST | dict(cutout=True, mirror=True)), load("digits"))
    train_epoch(trainer)  # warm up: libraries load and plan
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = []
        with pytest.raises(RuntimeError):  # the one look at the end of the epoch
            train_epoch(trainer, lambda: seen.append(1))
        assert len(seen) == trainer.steps_per_epoch
    finally:
        torch.cuda.set_sync_debug_mode("default")


NO_DATA = "ATTENTIONDROP_DATA is not set: no real CIFAR-10 here"


@pytest.mark.skipif("ATTENTIONDROP_DATA" not in os.environ, reason=NO_DATA)
def test_real_cifar10_loads():
    from attentiondrop_nb.training.batches import channel_stats
    from attentiondrop_nb.training.datasets import load

    data = load("cifar10", os.environ["ATTENTIONDROP_DATA"])
    assert data.x_train.shape == (50000, 3, 32, 32) and data.x_test.shape == (10000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [5000] * 10 and data.y_test.bincount().tolist() == [1000] * 10
    mean, std = channel_stats(data.x_train)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # the values everyone uses
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=1e-4)
