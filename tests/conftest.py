"""Two workers share two cores: one thread each, in the tests and in the kernels they start.

Without a GPU, Triton interprets its kernels.
"""
import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ["MPLBACKEND"] = os.environ.get("MPLBACKEND", "agg")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported


@pytest.fixture(autouse=True)
def subnormal_numbers():
    "Subnormal numbers are numbers: what an old torch.compile builds leaves the processor taking them for 0."
    torch.set_flush_denormal(False)


@pytest.fixture
def no_recompiles():
    "A change that makes torch.compile compile again is an error."
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()
