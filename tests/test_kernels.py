"The Triton kernels against the equations: on a GPU, or else in Triton's interpreter (`conftest.py` chooses it)."
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "triton", reason="Triton is not installed: it comes with PyTorch's CUDA wheels, and from PyPI on Linux"
)

import attentiondrop_nb as ad
from attentiondrop_nb.method.adaptive import top_beta_count, top_beta_threshold
from attentiondrop_nb.method.attentiondrop import attention_mask
from attentiondrop_nb.method.dropout import GRANULARITIES, RESCALES
from attentiondrop_nb.speed import gpu, kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUNCTIONS = {"am": ad.adaptive_mask_drop2d, "sm": ad.soft_mask_drop2d, "ad": ad.attention_drop2d}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [(2, 3, 8, 8), (2, 2, 5, 7), (2, 20, 3, 3), (1, 1, 1, 1), (3, 2, 1, 6)]
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA GPU on this machine")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, where the interpreter divides by zero


def maps(shape, dtype=torch.float32, order="contiguous", seed=0):
    "Normal maps; from five planes on one after a ReLU, one with ties, one constant, one with NaN, one with −Inf."
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    planes = x.flatten(0, 1)
    if len(planes) > 4:
        planes[0].sub_(0.8).relu_()
        planes[1].round_()
        planes[2].fill_(1.5)
        planes[3, 0, 0] = torch.nan
        planes[4, -1, -1] = -torch.inf
    return x.to(DEVICE, dtype).contiguous(memory_format=ORDERS[order])


def tensors(alpha, seed):
    return torch.tensor(alpha, dtype=torch.float32, device=DEVICE), torch.tensor(seed, device=DEVICE)


def compare(x, kind, granularity, rescale, alpha, beta, seed):
    "Kernels and equations agree on `x`, forward and backward, for the γ that the kernels draw."
    alpha, seed = tensors(alpha, seed)
    options = {} if kind == "sm" else {"beta": beta}
    a = x.clone().requires_grad_()
    b = x.clone().requires_grad_()
    grad = torch.randn_like(x)
    got = kernels.drop2d(a, alpha, seed, kind, top_beta_count(beta, x[0, 0].numel()), granularity, rescale)[0]
    gamma = gpu.drawn_gamma(x, alpha, seed, granularity).to(x.dtype)
    want = FUNCTIONS[kind](b, gamma=gamma, granularity=granularity, rescale=rescale, **options)
    assert got.stride() == x.stride() and got.dtype == x.dtype
    for g, w in ((got, want), (torch.autograd.grad(got, a, grad)[0], torch.autograd.grad(want, b, grad)[0])):
        torch.testing.assert_close(g, w, rtol=TOLERANCE[x.dtype], atol=1e-6, equal_nan=True)


# The same layer


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernels_and_equations_agree(dtype, order):
    for n, (kind, granularity, rescale) in enumerate(itertools.product(FUNCTIONS, GRANULARITIES, RESCALES)):
        x = maps(SHAPES[n % 5], dtype, order, seed=n)
        compare(x, kind, granularity, rescale, (0.5, 0.1, 1.0, 0.0)[n % 4], (20.0, 100.0, 1.0)[n % 3], seed=7919 * n)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("side", [16, 32, 56])
def test_the_shapes_of_networks(side, order):
    compare(maps((1, 5, side, side), torch.bfloat16, order), "ad", "element", "map", 0.1, 20.0, seed=side)


@pytest.mark.parametrize("scale", [1e-38, 1e-44, 1e37], ids=["tiny", "denormal", "huge"])
def test_tiny_and_huge_maps(scale):
    x = torch.randn(2, 3, 6, 6, device=DEVICE).clamp(-3, 3) * scale
    alpha, seed = tensors(1.0, 0)
    y = kernels.drop2d(x, alpha, seed, "ad", 8, "element", "none")[0]
    torch.testing.assert_close(
        y, x * attention_mask(x, 20), rtol=1e-5, atol=max(1e-6 * scale, 4e-45)
    )  # M of the brightest unit is 0 to rounding
    assert y.isfinite().all() and not y.equal(x)


specials = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0000001, 0.99999994]
)
floats = st.one_of(specials, st.integers(-3, 3).map(float), st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_the_threshold_is_the_kth_largest(h, w, data):
    x = torch.tensor(data.draw(st.lists(floats, min_size=h * w, max_size=h * w))).view(1, 1, h, w).to(DEVICE)
    x = x / 2  # no span overflows
    k = data.draw(st.integers(1, h * w))
    bounds = kernels.drop2d(x, *tensors(0.1, 0), "ad", k, "element", "map")[1].flatten()
    want = x.amin(), x.amax(), x.flatten().topk(k).values[-1]
    assert all(torch.equal(b, v) for b, v in zip(bounds, want))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_threshold_of_lopsided_planes(dtype):
    x = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[:, 1::3] = (x[:, 1::3] - 0.9).relu() ** 5  # nearly all zero, a long tail
    x[:, 2::3] = torch.exp(3 * x[:, 2::3])
    x[0, 3, 0, 0] = 6e4  # one broken unit
    x = x.clamp(max=6e4).to(dtype)  # what float16 can hold
    for beta in (1.0, 20.0, 99.0):
        bounds = kernels.drop2d(x, *tensors(0.1, 0), "ad", top_beta_count(beta, 256), "element", "map")[1]
        assert bounds[2].equal(top_beta_threshold(x, beta).flatten())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", gpu.STEPS, ids=str)
def test_the_search_is_exact(dtype, rows):
    "Ties, zeros of both signs, constant, denormal and huge planes, one or four in a program."
    x = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    x[1].round_()  # ties
    x[2].relu_()  # half of them zeros
    x[3] = 0.7  # constant
    x[4] = x[4].abs().neg().clamp(max=-0.0)  # negative, with −0
    x[5] *= 1e-42  # denormal
    x[6] *= 1e38 / 4  # huge
    x[7, 0] = 3e38  # one broken unit
    x = x[:: 3 if rows == 1 else 1].to(DEVICE, dtype).nan_to_num(posinf=6e4, neginf=-6e4)  # 1e38 is no float16
    for k in (1, 2, 12, 59, 60):
        assert gpu.search(x, k, rows)[0].equal(x.float().topk(k).values[:, -1]), k


# Draws


def test_alpha_0_and_1():
    x = maps((1, 3, 8, 8))
    for granularity in GRANULARITIES:
        assert (gpu.drawn_gamma(x, *tensors(0.0, 1), granularity) == 0).all()
        assert (gpu.drawn_gamma(x, *tensors(1.0, 1), granularity) == 1).all()


@pytest.mark.parametrize("order", ORDERS)
def test_draws_have_their_mean_and_are_new_for_each_seed_and_plane(order):
    x = maps((2, 16, 32, 32), order=order)
    a, b = (gpu.drawn_gamma(x, *tensors(0.3, seed), "element").flatten(0, 1) for seed in (5, 2**40 + 5))
    for g in (a, b):
        assert abs(g.mean() - 0.3) < 5 * (0.21 / g.numel()) ** 0.5
    units = a.flatten(1)  # neighbours, the next quad, and half a plane on
    pairs = [(a, b), (a[1:], a[:-1]), *((units[:, :-step], units[:, step:]) for step in (1, 4, 512))]
    for p, q in pairs:
        assert abs(((p - 0.3) * (q - 0.3)).mean()) < 5 * 0.21 / p.numel() ** 0.5
    ones = (units.sum(1) - 1024 * 0.3) / (1024 * 0.21) ** 0.5  # of each plane, standardised
    assert abs(ones.var() - 1) < 5 * (2 / len(ones)) ** 0.5


@pytest.mark.parametrize("shape", [(2, 20, 3, 3), (3, 5, 16, 16), (1, 33, 6, 5)], ids=str)
def test_the_memory_layout_does_not_change_the_draws(shape):
    for granularity in GRANULARITIES:
        a, b = (gpu.drawn_gamma(maps(shape, order=order), *tensors(0.5, 3), granularity) for order in ORDERS)
        assert a.equal(b)


def test_one_coin_for_a_map_or_a_sample():
    x = maps((6, 8, 4, 4))
    g = gpu.drawn_gamma(x, *tensors(0.5, 3), "map")
    assert (
        g.equal(g[:, :, :1, :1].expand_as(x))
        and len(g[:, :, 0, 0].unique(dim=0)) > 1
        and len(g[:, :, 0, 0].T.unique(dim=0)) > 1
    )
    g = gpu.drawn_gamma(x, *tensors(0.5, 3), "sample")
    assert g.equal(g[:, :1, :1, :1].expand_as(x)) and 0 < g.mean() < 1


def test_a_generator_fixes_the_draws():
    x = maps((1, 2, 8, 8))
    a, b, c = (
        kernels.fast_drop2d(x, 0.5, "ad", 50.0, "element", "map", torch.Generator(DEVICE).manual_seed(s))
        for s in (0, 0, 1)
    )
    assert a.equal(b) and not a.equal(c)


# Autograd, layouts, the operator


def test_the_gradient_may_have_any_layout():
    x = maps((2, 4, 6, 6), order="channels_last").nan_to_num(0, 0, 0).requires_grad_()
    y = kernels.drop2d(x, *tensors(0.5, 3), "ad", 8, "element", "map")[0]
    grads = [
        torch.autograd.grad(y, x, g, retain_graph=True)[0]
        for g in (torch.ones(2, 4, 6, 6, device=DEVICE), torch.ones((), device=DEVICE).expand_as(y))
    ]
    assert grads[0].equal(grads[1])
    torch.testing.assert_close(grads[0] * x.detach(), y.detach())  # y is linear in x, its mask being a constant


def test_a_view_is_taken_as_it_is_seen():
    wide = maps((2, 4, 6, 12)).nan_to_num(0, 0, 0)
    x = wide[..., ::2]
    y, z = (kernels.fast_drop2d(t, 1.0, "ad", 20.0, "element", "map", None) for t in (x, x.contiguous()))
    assert y.equal(z)


def test_twice_differentiable():
    x, v = (
        torch.randn(1, 2, 5, 5, device=DEVICE, requires_grad=True),
        torch.randn(1, 2, 5, 5, device=DEVICE, requires_grad=True),
    )
    y = kernels.drop2d(x, *tensors(0.5, 3), "ad", 5, "element", "map")[0]
    (g,) = torch.autograd.grad(y, x, v, create_graph=True)
    (weight,) = torch.autograd.grad(g, v, torch.ones_like(v))
    torch.testing.assert_close(weight * x, y)


ONES = {"float": 1.0, "tensor": torch.tensor(1.0), "float64": torch.tensor(1.0, dtype=torch.float64)}


@pytest.mark.parametrize("alpha", ONES.values(), ids=ONES)
def test_alpha_is_read_once(alpha):
    x = torch.randn(1, 2, 6, 6, device=DEVICE, requires_grad=True)
    alpha = alpha.to(DEVICE) if isinstance(alpha, torch.Tensor) else alpha
    y = kernels.fast_drop2d(x, alpha, "ad", 20.0, "element", "none", None)
    if isinstance(alpha, torch.Tensor):
        alpha.fill_(0.0)  # a schedule moves on before the backward pass
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], attention_mask(x.detach(), 20))


@pytest.mark.parametrize("order", ORDERS)
def test_opcheck(order):
    x = maps((2, 3, 4, 4), order=order).nan_to_num(0, 0, 0)
    alpha, seed = tensors(0.5, 7)
    for rescale in ("map", "tensor"):
        torch.library.opcheck(kernels.drop2d, (x.clone().requires_grad_(), alpha, seed, "ad", 4, "element", rescale))
    _, bounds, scale = kernels.drop2d(x, alpha, seed, "ad", 4, "element", "map")
    torch.library.opcheck(
        kernels.weigh2d, (torch.randn_like(x).requires_grad_(), x, alpha, seed, bounds, scale, "ad", "element")
    )


def test_ten_bytes_a_plane_are_kept_in_bfloat16():
    x = torch.randn(2, 8, 16, 16, device=DEVICE).bfloat16().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kernels.fast_drop2d(x, 0.1, "ad", 20.0, "element", "map", None)
    extra = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert sum(t.numel() * t.element_size() for t in extra) == 10 * 16 + 4 + 8  # α and the seed


@pytest.fixture
def one_process():
    "A process group of this process alone."
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Fused(torch.nn.Module):
    "The kernels as a layer, on any device."

    def __init__(self):
        super().__init__()
        self.register_buffer("alpha", torch.tensor(0.5))

    def forward(self, x):
        return kernels.fast_drop2d(x, self.alpha, "ad", 20.0, "element", "map", torch.Generator(DEVICE).manual_seed(0))


def test_under_data_parallel_training(one_process):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Fused()).to(DEVICE)
    x = torch.randn(2, 3, 8, 8, device=DEVICE)
    grads = []
    for model in (net, torch.nn.parallel.DistributedDataParallel(net)):
        net.zero_grad()
        for _ in range(2):  # DDP writes the buffers anew before each forward pass, α among them
            y = model(x)
        y.square().sum().backward()
        grads.append(net[0].weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_a_compiled_graph_serves_every_alpha():
    x = torch.randn(1, 2, 8, 8, device=DEVICE)
    f = torch.compile(
        lambda x, a: kernels.fast_drop2d(x, a, "ad", 20.0, "element", "map", None),
        fullgraph=True,
        backend="aot_eager",
    )
    for n, alpha in enumerate((0.0, 0.4, 1.0)):
        with torch._dynamo.config.patch(error_on_recompile=bool(n)):
            assert f(x, torch.tensor(alpha, device=DEVICE)).equal(x) == (alpha == 0)


# On a GPU alone


@on_gpu
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_auto_takes_the_kernels(kind):
    x = torch.randn(4, 8, 16, 16, device=DEVICE)
    y, z = (
        FUNCTIONS[kind](x, 0.5, backend=b, generator=torch.Generator(DEVICE).manual_seed(0)) for b in ("auto", "fast")
    )
    assert y.equal(z)
    assert not y.equal(FUNCTIONS[kind](x, 0.5, backend="eager", generator=torch.Generator(DEVICE).manual_seed(0)))


@on_gpu
def test_a_replayed_graph_draws_anew():
    x = torch.randn(4, 8, 16, 16, device=DEVICE)
    alpha, seed = tensors(0.5, 1)
    kernels.drop2d(x, alpha, seed, "ad", 52, "element", "map")  # compiled outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.drop2d(x, alpha, seed, "ad", 52, "element", "map")[0]
    results = []
    for s in (1, 2, 1):
        seed.fill_(s)
        graph.replay()
        results.append(y.clone())
    assert results[0].equal(results[2]) and not results[0].equal(results[1])
    alpha.fill_(0.0)
    graph.replay()
    assert y.equal(x)


@on_gpu
def test_a_captured_layer_draws_anew():
    layer = ad.AttentionDrop2d(0.5).to(DEVICE)
    x = torch.randn(4, 8, 16, 16, device=DEVICE)
    layer(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not y.equal(first)


@on_gpu
def test_a_compiled_network_is_not_compiled_again_as_alpha_moves():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), ad.AttentionDrop2d(0.0)).to(DEVICE)
    x = torch.randn(4, 3, 16, 16, device=DEVICE)
    compiled = torch.compile(net, fullgraph=True)
    compiled(x).sum().backward()
    for alpha in (0.05, 0.1, 1.0):
        net[2].set_alpha(alpha)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(x).sum().backward()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_the_maps(dtype):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), ad.AttentionDrop2d(0.5)).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        y = net(torch.randn(2, 3, 16, 16, device=DEVICE))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert net[0].weight.grad.isfinite().all()


@on_gpu
def test_memory_that_the_layer_keeps_and_needs():
    x = torch.randn(64, 64, 32, 32, device=DEVICE).bfloat16().requires_grad_()
    kernels.fast_drop2d(x, 0.1, "ad", 20.0, "element", "map", None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    size = x.numel() * 2
    y = kernels.fast_drop2d(x, 0.1, "ad", 20.0, "element", "map", None)
    assert torch.cuda.memory_allocated() - before - size <= 0.01 * size
    assert torch.cuda.max_memory_allocated() - before - size <= 0.01 * size
    y.sum().backward()


@on_gpu
def test_no_call_waits_for_the_device():
    x = torch.randn(4, 8, 16, 16, device=DEVICE, requires_grad=True)
    layer = ad.AttentionDrop2d(0.5).to(DEVICE)
    layer(x).sum().backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The compiler


def child(arguments, **variables):
    "Run Python in a clean process; its output if it succeeds."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))} | variables
    run = subprocess.run(
        [sys.executable, *arguments], cwd=Path(__file__).parent, env=env, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return run.stdout


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attentiondrop_nb.speed import gpu, kernels

halves = ("x_ptr", "values_ptr", "out_ptr", "bounds_ptr")
for name, dtype, constants in json.load(open(sys.argv[1])):
    types = {"scale_ptr": "*fp32", "alpha_ptr": "*fp32", "seed_ptr": "*i64", "z": "fp32"}
    types |= dict.fromkeys(halves, "*" + dtype)
    kernel = getattr(kernels, name, None) or getattr(gpu, name, None) or getattr(gpu, f"_{name}")
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    pointers = [i for i, n in enumerate(kernel.arg_names) if n.endswith("_ptr")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}  # as tensors are
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    print(json.dumps([name, dtype, constants["ROWS"], done.metadata.shared]))
"""

LAYOUTS = {
    "contiguous": dict(stride_plane=1024, stride_unit=1, HW=1024, ROWS=1, B=1024),
    "small": dict(stride_plane=256, stride_unit=1, HW=256, ROWS=4, B=256),
    "channels_last": dict(stride_plane=1, stride_unit=20, HW=49, ROWS=16, B=64),
}
CHOICES = [  # every value of every option at least once
    ("forward_kernel", "bf16", "contiguous", "ad", "element", "map"),
    ("forward_kernel", "bf16", "small", "ad", "element", "map"),
    ("forward_kernel", "fp16", "channels_last", "am", "map", "literal"),
    ("forward_kernel", "fp32", "contiguous", "sm", "sample", "tensor"),
    ("forward_kernel", "fp32", "channels_last", "ad", "element", "none"),
    ("weigh_kernel", "bf16", "contiguous", "ad", "element", None),
    ("weigh_kernel", "fp32", "channels_last", "am", "map", None),
    ("gamma_kernel", "fp32", "contiguous", None, "element", None),
    ("gamma_kernel", "fp32", "channels_last", None, "sample", None),
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
    script.write_text(COMPILE)
    listing.write_text(json.dumps(jobs))
    out = child([script, listing], TRITON_CACHE_DIR=str(tmp_path / "cache"), TRITON_DEFAULT_FP_FUSION="1")
    done = list(map(json.loads, out.splitlines()))
    assert len(done) == len(jobs)
    name, _, rows, shared = done[1]
    assert (name, rows) == ("forward_kernel", 4) and shared <= 64, (
        "the compiler did not lay the planes out as meant: their units go through shared memory"
    )
