"The Triton kernels: on this machine's GPU, or else in Triton's interpreter, which needs a process that has not imported Triton yet."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch's CUDA wheels, and from PyPI on Linux")

HERE = Path(__file__).parent


def child(arguments, **variables):
    "Run Python in a clean process; its output if it succeeds."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))} | variables
    run = subprocess.run([sys.executable, *arguments], cwd=HERE, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return run.stdout


if torch.cuda.is_available():
    from fused_cases import *  # noqa: F403
else:

    @pytest.mark.parametrize("part", ["agree", "not agree"])
    def test_kernels_in_the_interpreter(part):
        out = child(["-m", "pytest", "fused_cases.py", "-q", "-x", "-p", "no:cacheprovider", "-k", part], TRITON_INTERPRET="1")
        assert " passed" in out


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attentiondrop_nb import fused

halves = ("x_ptr", "values_ptr", "out_ptr", "bounds_ptr")
for name, dtype, constants in json.load(open(sys.argv[1])):
    types = {"scale_ptr": "*fp32", "alpha_ptr": "*fp32", "seed_ptr": "*i64", "z": "fp32"} | dict.fromkeys(halves, "*" + dtype)
    kernel = getattr(fused, name)
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    print(name, len(done.asm["cubin"]))
"""

LAYOUTS = {"contiguous": dict(s_c=1024, s_u=1, HW=1024, ROWS=1, B=1024), "channels_last": dict(s_c=1, s_u=20, HW=49, ROWS=16, B=64)}
CHOICES = [  # every value of every option at least once
    ("forward_kernel", "bf16", "contiguous", "ad", "element", "map"), ("forward_kernel", "fp16", "channels_last", "am", "map", "literal"),
    ("forward_kernel", "fp32", "contiguous", "sm", "sample", "tensor"), ("forward_kernel", "fp32", "channels_last", "ad", "element", "none"),
    ("weigh_kernel", "bf16", "contiguous", "ad", "element", None), ("weigh_kernel", "fp32", "channels_last", "am", "map", None),
    ("gamma_kernel", "fp32", "contiguous", None, "element", None), ("gamma_kernel", "fp32", "channels_last", None, "sample", None),
]


def assembler():
    try:
        from triton import knobs

        return Path(knobs.nvidia.ptxas.path).exists()
    except (AttributeError, ImportError, RuntimeError):
        return False


@pytest.mark.skipif(not assembler(), reason="this Triton brings no assembler for NVIDIA chips")
def test_the_kernels_compile_for_an_h100(tmp_path):
    "The interpreter takes what the compiler refuses: types that do not fit, shapes that are not known."
    steps = {"bf16": 2**16, "fp16": 2**13, "fp32": 1}
    jobs = [
        (kernel, dtype, LAYOUTS[layout] | dict(KIND=kind, GRANULARITY=granularity, RESCALE=rescale, STEP=steps[dtype]))
        for kernel, dtype, layout, kind, granularity, rescale in CHOICES
    ]
    jobs.append((*jobs[0][:2], jobs[0][2] | dict(many=1, planes=1, C=1, k=1)))  # a one is a constant to the compiler
    script, listing = tmp_path / "compile.py", tmp_path / "jobs.json"
    script.write_text(COMPILE), listing.write_text(json.dumps(jobs))
    out = child([script, listing], TRITON_CACHE_DIR=str(tmp_path / "cache"), TRITON_DEFAULT_FP_FUSION="1")
    assert len(out.splitlines()) == len(jobs)
