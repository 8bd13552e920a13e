"""What holds for any tensor: every shape, dtype, layout, value, α, β and option, whatever computes the layer.

A draw is judged without knowing its coins: each unit must be left alone or masked as the equations say, worked out
here in float64; one coin must decide for what it has to decide for; and the scale must be the one asked for.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import attentiondrop_nb as ad
from attentiondrop_nb.checks import FLOATS
from attentiondrop_nb.method.dropout import GRANULARITIES, RESCALES

FUNCTIONS = {"am": ad.adaptive_mask_drop2d, "sm": ad.soft_mask_drop2d, "ad": ad.attention_drop2d}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# a case says what it is: to make it smaller would take minutes
QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))


# Cases


class Case(NamedTuple):
    "A call of a layer."

    method: str
    x: torch.Tensor
    alpha: float | torch.Tensor
    beta: float
    granularity: str
    rescale: str
    seed: int

    def __repr__(self):
        x = f"{self.x.dtype} {tuple(self.x.shape)} strides {self.x.stride()} {self.x.flatten()[:12].tolist()}"
        options = f"alpha={self.alpha!r} beta={self.beta!r} {self.granularity} {self.rescale} seed={self.seed}"
        return f"{self.method} {x} {options}"


def drop(case, backend="eager", x=None, **kwargs):
    "The layer that `case` asks for, on `x` if it is given. `backend` \"triton\": the kernels, wherever x lies."
    x = case.x if x is None else x
    generator = torch.Generator(x.device).manual_seed(case.seed)
    if backend == "triton":
        from attentiondrop_nb.speed import kernels

        options = case.granularity, case.rescale, generator
        return kernels.fast_drop2d(x, case.alpha, case.method, case.beta, *options)
    options = dict(granularity=case.granularity, rescale=case.rescale, generator=generator, backend=backend)
    if case.method != "sm":
        options["beta"] = case.beta
    return FUNCTIONS[case.method](x, case.alpha, **options | kwargs)


def texture(kind, shape, dtype, generator):
    "Values of a `kind`, random ones, as float64 that `dtype` can hold."
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    subnormal = 3 * tiny * torch.finfo(dtype).eps
    kinds = {
        "normal": lambda: x,
        "behind a ReLU": lambda: (x - 0.5).relu(),
        "ties": lambda: x.round(),
        "zeros of both signs": lambda: torch.copysign(torch.zeros_like(x), x),
        "subnormal": lambda: (x * 4).round() * subnormal,
        "about the smallest normal": lambda: x * tiny,
        "huge": lambda: (x / 4).clamp(-1, 1) * huge,  # the range of a plane may overflow
        "huge, positive": lambda: (1 - x.abs() / 8).clamp(0, 1) * huge,  # the range does not, a product may
        "constant": lambda: x.sign()[..., :1, :1].expand(shape) * 2.5,
        "two neighbours": lambda: 1 + (x > 0) * torch.finfo(dtype).eps,
        "nearly all at the top": lambda: (x > -1.5).double() * 7,
    }
    return kinds[kind]() if kind else kinds


KINDS = list(texture(None, (1, 1, 1, 1), torch.float32, None))
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": lambda x: torch.stack([x, -x], -1).flatten(3)[..., ::2],
    "turned": lambda x: x.mT.contiguous().mT,
    "from the middle of a larger one": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "one sample, expanded": lambda x: x[:1].expand_as(x),
    "one plane, expanded": lambda x: x[:1, :1].expand_as(x),
}
ALPHAS = [0.0, math.nextafter(0, 1), 1e-45, 1e-9, 0.1, 0.5, 0.9, math.nextafter(1, 0), 1.0]
BETAS = [math.nextafter(0, 1), 0.1, 20.0, 33.3, 50.0, math.nextafter(100, 0), 100.0]
SIDES = [(1, 1), (1, 2), (1, 17), (17, 1), (2, 2), (3, 5), (4, 4), (7, 7), (13, 11), (8, 8), (16, 16)]
LARGE_SIDES = [(1, 80), (80, 1), (31, 37), (32, 32), (64, 64), (79, 73), (80, 80)]


@st.composite
def cases(draw, sides=(*SIDES, *SIDES, *LARGE_SIDES), dtypes=FLOATS, empty=True):
    "Any call: the values of each plane are of a kind of its own, and some planes hold a NaN or an Inf."
    h, w = draw(st.sampled_from(sides) | st.tuples(st.integers(1, 12), st.integers(1, 12)))
    n, c = (draw(st.sampled_from([1, 2, 3, 4, 5] * 4 + [0] * empty)) for _ in range(2))
    dtype = draw(st.sampled_from(dtypes))
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, c, h, w, dtype=torch.float64)
    for plane in x.flatten(0, 1):
        plane[:] = texture(draw(st.sampled_from(KINDS) | st.just("normal")), (h, w), dtype, generator)
        sick = draw(st.sampled_from([None] * 9 + [math.nan, math.inf, -math.inf]))
        if sick is not None:
            plane.view(-1)[draw(st.integers(0, h * w - 1))] = sick
    x = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](x.to(dtype)) if x.numel() else x.to(dtype)
    alpha = draw(st.sampled_from(ALPHAS) | st.floats(0, 1))
    if draw(st.booleans()):
        alpha = torch.tensor(alpha, dtype=draw(st.sampled_from([torch.float32, torch.float64])))
    beta = draw(st.sampled_from(BETAS) | st.integers(1, 10**8).map(lambda v: v / 10**6))
    options = [draw(st.sampled_from(choices)) for choices in (GRANULARITIES, RESCALES)]
    return Case(draw(st.sampled_from(list(FUNCTIONS))), x, alpha, beta, *options, seed)


# What must hold


def bits(x):
    "The bits of a float tensor: −0 is not 0, and NaN equals NaN, whichever of its bit patterns it has."
    return torch.where(x.detach().isnan(), math.nan, x.detach()).contiguous().view(INTEGERS[x.element_size()])


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a).equal(bits(b))


def judge(case):
    "S of the paper in float64 [N, C, H, W]; which planes are sick, or too wide for their dtype [N, C, 1, 1]."
    x = case.x
    wide = x.float() if x.element_size() == 2 else x
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    well = (high - low).isfinite()
    x = torch.where(well, x.double(), 0.0)
    k = max(1, math.ceil(Fraction(f"{case.beta:.9f}") / 100 * x[0, 0].numel()))
    threshold = x.flatten(2).sort(-1, descending=True).values[..., k - 1, None, None]
    low = x.amin((2, 3), keepdim=True)
    span = x.amax((2, 3), keepdim=True) - low
    f_hat = (x - low) / torch.where(span > 0, span, 1.0)
    s = {"am": (x <= threshold).double(), "sm": 1 - f_hat, "ad": 1 - f_hat * (x >= threshold)}[case.method]
    return s, well


def check_draw(case, backend):
    "All that must hold for one draw of `case`."
    before = bits(case.x).clone()
    version = case.x._version
    x = case.x.detach().requires_grad_()
    y = drop(case, backend, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    for order in (torch.contiguous_format, torch.channels_last):
        assert y.is_contiguous(memory_format=order) or not x.is_contiguous(memory_format=order)
    assert same(drop(case, backend), y)  # a seed repeats
    weight = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    below_two = torch.full_like(y, 2 - torch.finfo(y.dtype).eps)
    kept = torch.autograd.grad(y, x, below_two, retain_graph=True)[0] == below_two  # a weight of 1, not rounded to it
    other = torch.full_like(y, -3.0)
    gradient = torch.autograd.grad(y, x, other)[0]
    assert bits(case.x).equal(before) and case.x._version == version  # the input is as it was
    if x.numel() > 0:
        check_products(x.detach(), y.detach(), weight, kept, backend)
        check_products(other, gradient, weight, kept, backend)
        check_weight(case, weight.double())


def loses_subnormals(backend, dtype):
    "Triton's interpreter takes bfloat16's subnormal numbers for 0, as no GPU does."
    return backend == "triton" and dtype == torch.bfloat16


def check_products(values, got, weight, kept, backend):
    "`got` is `values` times `weight`: to the bit where nothing is rounded in between, and where a plane is `kept`."
    if values.element_size() > 2:
        assert same(got, values * weight)
    untouched = (kept & (weight == 1)).all(-1, keepdim=True).all(-2, keepdim=True).expand_as(got)
    assert bits(got)[untouched].equal(bits(values)[untouched])
    eps = torch.finfo(got.dtype).eps
    smallest = torch.finfo(got.dtype).smallest_normal * (1 if loses_subnormals(backend, got.dtype) else eps)
    largest = values[values.isfinite()].abs().double().amax() if values.isfinite().any() else 0.0
    atol = 2 * smallest * max(1.0, float(largest))  # a weight of a half type is rounded too
    near(got[~untouched], (values.double() * weight.double())[~untouched], 2 * eps, atol)


def check_weight(case, weight):
    "The weight of each unit, mask times scale, is one that the paper allows."
    s, well = judge(case)
    close = {2: 1.6e-2 if case.x.dtype == torch.bfloat16 else 2e-3, 4: 4e-6, 8: 1e-12}[case.x.element_size()]
    assert (weight >= 0).all() and (weight[~well.expand_as(weight)] == 1).all()
    top = weight.amax((2, 3), keepdim=True)  # the scale: at F_min M is 1
    mask = torch.where(well, weight / top, 1.0)
    alone, masked = (mask - 1).abs() <= close, (mask - s).abs() <= close
    assert (alone | masked | ~well).all()
    check_coins(case, alone, masked | ~well, well & (1 - s > 3 * close))
    check_scale(case, mask, torch.where(well, top, 1.0), well, close)
    equal = (weight.amin((2, 3), keepdim=True) == top) & well  # nothing is taken from such a plane
    if case.rescale in ("none", "map"):
        assert (top[equal] == 1).all()


def check_coins(case, alone, masked, clear):
    """α is 0 or 1: no coin is left to chance. Else one coin decides for a plane, or for all planes of a sample.

    `clear`: where it can be told whether a unit is masked; in each plane about a share α of these units is.
    """
    alpha = float(torch.as_tensor(case.alpha).float())
    if alpha < 1e-40:
        assert alone.all()
    if alpha == 1:
        assert masked.all()
    first = {"element": 4, "map": 2, "sample": 1}[case.granularity]  # the dimensions from here on share a coin
    if first < 4:
        assert (alone.flatten(first).all(-1) | masked.flatten(first).all(-1)).all()
        return
    tossed = clear.sum((2, 3))
    surplus = (clear & ~alone).sum((2, 3)) - alpha * tossed
    assert (surplus.abs() <= 19 + (87 + 56 * alpha * (1 - alpha) * tossed).sqrt()).all()  # Bernstein: odds of 10⁻¹²


def check_scale(case, mask, scale, well, close):
    "Scale and mask [N, C, H, W] give what `rescale` says."
    want = {
        "none": scale,
        "literal": scale * mask.sum((2, 3), keepdim=True),  # Eq. 9 as printed
        "map": scale * mask.mean((2, 3), keepdim=True),
        "tensor": scale * mask.mean(),
    }
    got = want[case.rescale][well]
    torch.testing.assert_close(got, torch.ones_like(got), rtol=2 * close, atol=0)


def near(got, want, rtol, atol=0.0):
    "Equal to rounding; a product that just overflows in one may just fit in the other."
    largest = torch.finfo(got.dtype).max
    pair = (t.double().clamp(-largest, largest) for t in (got, want))
    torch.testing.assert_close(*pair, rtol=rtol, atol=atol, equal_nan=True)


# One draw


CPU = pytest.mark.parametrize("backend", ["eager", "fast"])


def on_a_cpu(backend, case):
    check_draw(case, backend if case.x.numel() else "eager")  # the fast code refuses what is empty


@settings(max_examples=250, derandomize=True, **QUIET)
@given(cases())
@CPU
def test_any_draw(backend, case):
    on_a_cpu(backend, case)


@pytest.mark.slow
@settings(max_examples=10_000, **QUIET)
@given(cases())
@CPU
def test_ten_thousand_draws(backend, case):
    on_a_cpu(backend, case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@settings(max_examples=250, derandomize=True, **QUIET)
@given(cases())
def test_any_draw_of_the_equations_on_a_gpu(case):
    check_draw(case._replace(x=case.x.cuda()), "eager")


def in_the_interpreter(case):
    pytest.importorskip("triton", reason="Triton is not installed")
    if loses_subnormals("triton", case.x.dtype):
        tiny = torch.finfo(case.x.dtype).smallest_normal
        case = case._replace(x=torch.where(case.x.abs() < tiny, 0, case.x))
    check_draw(case, "triton")


SMALL = cases(sides=SIDES, dtypes=FLOATS[:3], empty=False)
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_kernels.py runs the compiled kernels")
NUMPY = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, where a kernel divides by zero


@INTERPRETED
@NUMPY
@settings(max_examples=15, derandomize=True, **QUIET)
@given(SMALL)
def test_any_draw_of_the_kernels(case):
    in_the_interpreter(case)


@pytest.mark.slow
@INTERPRETED
@NUMPY
@settings(max_examples=600, **QUIET)
@given(SMALL)
def test_many_draws_of_the_kernels(case):
    in_the_interpreter(case)


# The same draw in other ways


def check_ways(case):
    "Without gradients, under autocast and in threads that work at the same time, a seed gives the same bits."
    for backend in ("eager", "fast") if case.x.numel() else ("eager",):
        want = drop(case, backend)
        for way in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
            with way:
                assert same(drop(case, backend), want)
        with ThreadPoolExecutor(3) as pool:
            assert all(same(y, want) for y in pool.map(lambda _: drop(case, backend), range(3)))


def check_given_coins(case):
    "With the draws given, planes may be exchanged, and torch.func.vmap is a loop."
    generator = torch.Generator().manual_seed(case.seed)
    gamma = ad.sample_gamma(case.x, 0.5, case.granularity, generator)
    n, c = (torch.randperm(size, generator=generator) for size in case.x.shape[:2])
    rtol = {2: 2 * torch.finfo(case.x.dtype).eps, 4: 4e-6, 8: 1e-12}[case.x.element_size()]
    atol = 2 * torch.finfo(case.x.dtype).smallest_normal * torch.finfo(case.x.dtype).eps
    want = drop(case, x=case.x, gamma=gamma)
    other_gamma = gamma[n] if gamma.shape[1] == 1 else gamma[n][:, c]
    near(drop(case, x=case.x[n][:, c], gamma=other_gamma), want[n][:, c], rtol, atol)
    xs, gammas = (torch.stack([t, t.flip(0)]) for t in (case.x, gamma))
    looped = torch.stack([drop(case, x=x, gamma=g) for x, g in zip(xs, gammas)])
    near(torch.func.vmap(lambda x, g: drop(case, x=x, gamma=g))(xs, gammas), looped, rtol, atol)


def check_compiled(case):
    "Compiled, the equations give the same, forward and backward."
    torch._dynamo.reset()
    gamma = ad.sample_gamma(case.x, 0.5, case.granularity, torch.Generator().manual_seed(case.seed))
    layer = lambda x, gamma: drop(case, x=x, gamma=gamma)
    rtol = {2: 2 * torch.finfo(case.x.dtype).eps, 4: 4e-6, 8: 1e-12}[case.x.element_size()]
    pairs = []
    for function in (layer, torch.compile(layer, backend="aot_eager", dynamic=True)):
        x = case.x.detach().requires_grad_()
        y = function(x, gamma)
        pairs.append((y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))))
    for got, want in zip(*pairs):
        near(got, want, rtol)


@settings(max_examples=100, derandomize=True, **QUIET)
@given(cases())
def test_other_ways(case):
    check_ways(case)
    check_given_coins(case)


@pytest.mark.slow
@settings(max_examples=2_000, **QUIET)
@given(cases())
def test_other_ways_often(case):
    check_ways(case)
    check_given_coins(case)


@settings(max_examples=2, derandomize=True, **QUIET)
@given(cases())
def test_compiled(case):
    check_compiled(case)


@pytest.mark.slow
@settings(max_examples=100, **QUIET)
@given(cases())
def test_compiled_often(case):
    check_compiled(case)
