"""What only a GPU can tell, in a few minutes: its tests, the benchmark with its bars, a profile of the training step.

    python tools/gpu_check.py FOLDER [--seconds 240]

Each part writes into FOLDER as soon as it is done, so a cut-off loses the part in flight alone: profile.json;
tests.txt; benchmark.ipynb and benchmark.json; and parts.json, how each part ended. Without a GPU the same is done on
the CPU with tiny sizes: a rehearsal. Needs torch, pytest, pytest-xdist, hypothesis, papermill and ipykernel.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TESTS = ["kernels", "layers", "relatives", "networks", "training_notebook"]
SHARES = {"profile": 0.2, "tests": 0.35, "benchmark": 1.0}  # of the time that is then left, at most


def sizes(gpu):
    "What each part works on: sizes for a GPU, or tiny ones."
    if gpu:
        tests = ["-n", "12"]
        training = dict(width=64, batch_size=512, images=12_800)
        benchmark = dict(
            shapes="128x64x32x32 128x128x16x16 128x256x8x8", train_images=12_800, train_batches="512", train_repeats=5
        )
    else:
        tests = ["-k", "alpha_0_and_1 or alpha_is_read_once"]
        training = dict(width=4, batch_size=32, images=128)
        benchmark = dict(shapes="4x8x8x8", repeats=2, train_width=2)
        benchmark |= dict(train_images=64, train_batches="32", train_repeats=2)
    return tests, training, benchmark


def run_for(command, seconds, log):
    "Run `command`, its output into the file `log`. Interrupted after `seconds`. Returns 'done', 'failed' or 'cut off'."
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return "failed" if process.wait(max(1, seconds)) else "done"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # pytest and papermill keep what they have
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "cut off"


def check_tests(folder, seconds, arguments):
    "The tests that take another way on a GPU."
    files = [f"tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rf", *arguments, *files]
    return run_for(command, seconds, folder / "tests.txt")


def check_benchmark(folder, seconds, parameters):
    "The benchmark notebook, executed, and its record."
    given = parameters | dict(out_dir=str(folder), record=str(folder / "benchmark.json"))
    options = [word for name, value in given.items() for word in ("-p", name, str(value))]
    paths = [str(ROOT / "nbs" / "experiments" / "benchmark.ipynb"), str(folder / "benchmark.ipynb")]
    command = [sys.executable, "-m", "papermill", *paths, "-k", "python3", "--no-progress-bar", *options]
    return run_for(command, seconds, folder / "benchmark.txt")


def make_trainer(method, width, batch_size, images):
    "A `Trainer` on noise of CIFAR-100's size, not compiled, at full α from its second step on."
    from attentiondrop_nb.training.config import make_config
    from attentiondrop_nb.training.loop import Trainer
    from attentiondrop_nb.training.shapes import Images

    x = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    data = Images("noise", x, torch.arange(images) % 100, x[:2], torch.arange(2), tuple(map(str, range(100))))
    asked = dict(dataset="noise", method=method, width=width, batch_size=batch_size, epochs=1, lr=1e-3)
    return Trainer(make_config(asked | ({} if method == "none" else dict(alpha_steps=1))), data)


def profile_loop(method, training):
    "Seconds a step of the loop, not compiled: by the clock (median of 5 passes), and by kind of work."
    from attentiondrop_nb.speed.profile import profile_epoch
    from attentiondrop_nb.training.loop import train_epoch

    trainer = make_trainer(method, **training)
    passes = []
    for _ in range(6):  # the first warms up; each ends with a look at the device
        start = time.perf_counter()
        train_epoch(trainer)
        passes.append((time.perf_counter() - start) / trainer.steps_per_epoch)
    return dict(step=statistics.median(passes[1:]), passes=passes, kinds=profile_epoch(trainer)), trainer


def check_profile(folder, seconds, training):
    "Where the time of a training step goes, without a drop layer, with AttentionDrop and with DropBlock."
    from attentiondrop_nb.training.runs import environment

    found = dict(training=training, methods={})
    for method in ("none", "ad", "dropblock"):
        found["methods"][method], trainer = profile_loop(method, training)
        found["environment"] = environment(trainer)
        (folder / "profile.json").write_text(json.dumps(found, indent=1))
    return "done"


def main():
    "All parts -> exit code: 0 if all are done."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="for all parts together; default: 240")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    tests, training, benchmark = sizes(torch.cuda.is_available())
    parts = {
        "profile": lambda seconds: check_profile(folder, seconds, training),
        "tests": lambda seconds: check_tests(folder, seconds, tests),
        "benchmark": lambda seconds: check_benchmark(folder, seconds, benchmark),
    }
    ended = {}
    for name, check in parts.items():
        start = time.monotonic()
        try:
            state = check(SHARES[name] * (end - start))
        except Exception as e:  # whatever is wrong with one part, the others are worth their time
            state = f"failed: {type(e).__name__}: {e}"
        ended[name] = dict(state=state, seconds=round(time.monotonic() - start, 1))
        (folder / "parts.json").write_text(json.dumps(ended, indent=1))
        print(f"{name:10} {ended[name]['seconds']:6.1f} s  {state}", flush=True)
    return 0 if all(part["state"] == "done" for part in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
