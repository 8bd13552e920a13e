"The compiled loops for a CPU: any values, forks, threads, layouts, the cache of machine code, and no Numba at all."
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attentiondrop_nb as ad
from attentiondrop_nb.method.dropout import GRANULARITIES, RESCALES
from attentiondrop_nb.speed.planes import _throw, compiled, find_units

FUNCTIONS = {"am": ad.adaptive_mask_drop2d, "sm": ad.soft_mask_drop2d, "ad": ad.attention_drop2d}


def run(code, **environment):
    "The standard output of a fresh Python that runs `code`."
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def rows_of(dtype):
    "A row of finite floats, with ties, tiny and huge ones; their span may be too large for the type."
    floats = st.floats(width=8 * dtype().itemsize, allow_nan=False, allow_infinity=False)
    few = st.lists(floats, min_size=1, max_size=4).flatmap(lambda values: st.lists(st.sampled_from(values), min_size=1))
    lists = st.one_of(st.lists(floats, min_size=1, max_size=300), few)
    return lists.map(lambda values: np.array([values], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_the_region_begins_at_the_kth_largest(dtype, data):
    row = data.draw(rows_of(dtype))
    k = data.draw(st.integers(1, row.size))
    threshold = np.sort(row[0])[-k]
    with np.errstate(over="ignore"):
        sound = row.max() - row.min() < np.inf
    regions = {"ad": row[0] >= threshold, "am": row[0] > threshold, "sm": row[0] > row.min()}
    for kind, region in regions.items():
        found = find_units(row, kind, k, np.ones(1), np.uint64(0), 0)
        want = np.flatnonzero(region & (row[0] > row.min())) if sound else []
        assert found.units.tolist() == list(want)
        assert np.isnan(found.taken[0]) != sound


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_layout_changes_nothing(kind, granularity):
    "The random stream belongs to the plane, wherever it lies."
    for shape in ((3, 20, 5, 7), (2, 18, 16, 17)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            for rescale in RESCALES:
                options = dict(granularity=granularity, rescale=rescale)
                ys = [
                    FUNCTIONS[kind](t, 0.4, generator=torch.Generator().manual_seed(2), **options)
                    for t in (x, x.contiguous(memory_format=torch.channels_last))
                ]
                assert ys[0].equal(ys[1])


def test_a_fork_draws_as_its_parent():
    code = """
import hashlib
import os
import torch
import attentiondrop_nb as ad

def draw():
    y = ad.attention_drop2d(x, generator=torch.Generator().manual_seed(3))
    return hashlib.sha256(y.numpy()).hexdigest()  # PyTorch's own threads do not survive a fork

torch.set_num_threads(3)
x = torch.rand(16, 16, 64, 64)  # several blocks, so several threads
want = draw()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, draw().encode())
    os._exit(0)
os.wait()
assert os.read(read, 100).decode() == want == draw()
"""
    run(code)


MISSING = """
import importlib.abc, sys, warnings

class Refusal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.5 or less. Got NumPy 3.0.")

sys.meta_path.insert(0, Refusal())
import torch
import attentiondrop_nb as ad

x = torch.rand(2, 3, 8, 8)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    ys = [layer(x) for layer in (ad.AttentionDrop2d(1.0), ad.SoftMaskDrop2d(1.0), ad.AttentionDrop2d(1.0))]
assert ys[0].equal(ys[2]) and ys[0].equal(ad.attention_drop2d(x, 1.0, backend="eager"))
(warning,) = seen
assert "Got NumPy 3.0" in str(warning.message) and "pip install numba" in str(warning.message)
try:
    ad.attention_drop2d(x, backend="fast")
except ValueError as error:
    assert "Got NumPy 3.0" in str(error) and "use backend='auto' or 'eager'" in str(error)
    print("refused")
"""


def test_without_numba_the_equations_run_and_one_warning_says_so():
    assert run(MISSING) == ["refused"]


def test_without_a_folder_for_machine_code_each_process_compiles(monkeypatch):
    njit = numba.njit

    def no_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'half': no locator available for file 'planes.py'")
        return njit(**options)

    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", no_folder)
        loop = compiled(half)
    assert loop(6.0) == 3.0


def half(x):
    return x / 2


COUNT = """
import numba, torch
import attentiondrop_nb as ad
from attentiondrop_nb.speed import cpu, planes

for dtype in (torch.float32, torch.bfloat16):
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(2, 3, 9, 9).to(dtype).contiguous(memory_format=format).requires_grad_()
        ad.attention_drop2d(x).sum().backward()
loops = [value for module in (cpu, planes) for value in vars(module).values() if hasattr(value, "py_func")]
print(sum(sum(loop.stats.cache_misses.values()) for loop in loops))
"""


@pytest.mark.slow
def test_one_process_compiles_for_all(tmp_path):
    assert int(run(COUNT, NUMBA_CACHE_DIR=str(tmp_path))[0]) > 0
    assert run(COUNT, NUMBA_CACHE_DIR=str(tmp_path)) == ["0"]


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.1, 0.5, 0.97, 1.0])
def test_coins_are_fair_and_know_nothing_of_each_other(alpha):
    everyone = np.uint64(2**64 - 1)
    words = [_throw(everyone, alpha, np.uint64(stream), np.uint64(1))[0] for stream in range(20_000)]
    coins = np.unpackbits(np.array(words, np.uint64).view(np.uint8)).reshape(-1, 64)
    error = max((alpha * (1 - alpha) / len(coins)) ** 0.5, 1e-12)  # standard error of one position's mean
    assert abs(coins.mean() - alpha) < 5 * error / 8
    assert np.abs(coins.mean(0) - alpha).max() < 5 * error  # 64 positions
    neighbours = (coins[:, 1:] * coins[:, :-1]).mean()
    assert abs(neighbours - alpha**2) <= 10 * alpha / (63 * len(coins)) ** 0.5
    variance = 64 * alpha * (1 - alpha)
    assert abs(coins.sum(1).var() - variance) <= 5 * variance * (2 / len(coins)) ** 0.5
