"What the drop layers promise beyond the lessons: dtypes, layouts, odd planes, autograd, autocast, compile, export."
import copy
import json
import math
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import attentiondrop_nb as ad
from attentiondrop_nb.checks import FLOATS
from attentiondrop_nb.layers.layers import _FAST_CODE
from attentiondrop_nb.method.adaptive import shape_mask, top_beta_threshold
from attentiondrop_nb.method.dropout import GRANULARITIES, RESCALES, apply_mask, sample_gamma
from attentiondrop_nb.method.soft import min_max_normalize

FUNCTIONS = {"am": ad.adaptive_mask_drop2d, "sm": ad.soft_mask_drop2d, "ad": ad.attention_drop2d}
MODULES = {"am": ad.AdaptiveMaskDrop2d, "sm": ad.SoftMaskDrop2d, "ad": ad.AttentionDrop2d}
METHODS = list(FUNCTIONS)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def drop(method, x, *, beta=20.0, **kwargs):
    "The drop function of `method`, which takes β or not."
    return FUNCTIONS[method](x, **kwargs, **({} if method == "sm" else {"beta": beta}))


def maps(*shape, dtype=torch.float32, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def coins(x, share=0.5, seed=1):
    return (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share).to(x.device, x.dtype)


def layouts(x):
    "The same values contiguous, channels_last, and as a view that is neither."
    wide = torch.empty(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": wide[..., ::2],
    }


# The method against plain Python


values = st.one_of(
    st.integers(-2, 2).map(float), st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
)


@st.composite
def small_maps(draw):
    n, c, h, w = (draw(st.integers(low, high)) for low, high in ((0, 2), (1, 3), (1, 5), (1, 5)))
    flat = draw(st.lists(values, min_size=n * c * h * w, max_size=n * c * h * w))
    bits = draw(st.lists(st.integers(0, 1), min_size=n * c * h * w, max_size=n * c * h * w))
    return torch.tensor(flat, dtype=torch.float64).view(n, c, h, w), torch.tensor(bits, dtype=torch.float64).view(
        n, c, h, w
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    small_maps(),
    st.sampled_from(METHODS),
    st.sampled_from(RESCALES),
    st.sampled_from([0.1, 5, 20, 33.3, 50, 99.9, 100]),
)
def test_against_plain_python(x_gamma, method, rescale, beta):
    x, gamma = x_gamma
    want = torch.tensor(
        reference.weights(method, x.tolist(), gamma.tolist(), beta, rescale), dtype=torch.float64
    ).view_as(x)
    x.requires_grad_()
    out = drop(method, x, beta=beta, rescale=rescale, gamma=gamma)
    torch.testing.assert_close(out, x * want)
    out.sum().backward()
    torch.testing.assert_close(x.grad, want)  # the gradient is the mask times the scale


@settings(max_examples=200, deadline=None, derandomize=True)
@given(small_maps(), st.floats(0.01, 100))
def test_threshold_against_sorting(x_gamma, beta):
    x, _ = x_gamma
    want = [reference.threshold(f, beta) for fs in x.tolist() for f in fs]
    assert top_beta_threshold(x, beta).flatten().tolist() == want


# The ends (what holds for any tensor: test_tensors.py)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(5, 3, 7, 7), (41, 1, 11, 11), (1, 2, 22, 44)])  # n for which n · (1/n) is not 1
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_alpha_zero_is_the_identity_to_the_bit(method, dtype, shape, device):
    for x in layouts(maps(*shape, dtype=dtype, device=device)).values():
        for alpha in (0.0, torch.tensor(0.0, device=device)):
            for rescale in ("none", "map", "tensor"):
                assert drop(method, x, alpha=alpha, rescale=rescale).equal(x)


def test_a_mask_that_sums_to_zero_gives_zeros():
    x = maps(2, 2, 4, 4).requires_grad_()
    for rescale in RESCALES:
        out = apply_mask(x, torch.zeros(2, 2, 1, 1), rescale)
        assert out.equal(torch.zeros_like(x))


def test_masks_are_constants_to_autograd():
    x = maps(2, 2, 4, 4)
    mask = torch.rand(2, 2, 4, 4).requires_grad_()
    assert not apply_mask(x, mask, "map").requires_grad
    y = apply_mask(x.requires_grad_(), mask, "map")
    assert torch.autograd.grad(y.sum(), mask, allow_unused=True) == (None,)


# The coins


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_share_of_coins(dtype, granularity):
    x = torch.zeros(64, 64, 12, 12, dtype=dtype)
    for alpha in (0.01, 0.1, 0.9, torch.tensor(0.3)):
        gamma = sample_gamma(x, alpha, granularity, torch.Generator().manual_seed(0)).double()
        error = math.sqrt(float(alpha) * (1 - float(alpha)) / gamma.numel())
        assert abs(float(gamma.mean()) - float(alpha)) < 5 * error
        assert gamma.dtype == torch.float64 and gamma.expand(x.shape).shape == x.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_generator_fixes_the_draws(method, granularity):
    x = maps(8, 8, 8, 8)
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    draw = lambda seed, backend: drop(
        method, x, alpha=0.5, granularity=granularity, generator=seeded(seed), backend=backend
    )
    for backend in ("auto", "eager", "fast"):
        assert draw(0, backend).equal(draw(0, backend)) and not draw(0, backend).equal(draw(1, backend))
    gamma = sample_gamma(x, 0.5, granularity, seeded(0))
    assert draw(0, "eager").equal(drop(method, x, gamma=gamma, granularity=granularity))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("method", METHODS)
def test_what_comes_out_may_be_changed_in_place(method, layout):
    x = layouts(maps(2, 3, 6, 6))[layout].requires_grad_()
    out = drop(method, x, alpha=0.5)
    want = torch.autograd.grad(out.relu().sum(), x, retain_graph=True)[0]
    nn.functional.relu_(out).sum().backward()
    assert x.grad.equal(want)


# Modules


@pytest.mark.parametrize("method", METHODS)
def test_module_is_the_function(method):
    layer = MODULES[method](0.3, rescale="tensor", granularity="sample")
    x = maps(6, 3, 8, 8)
    torch.manual_seed(0)
    out = layer(x)
    torch.manual_seed(0)
    assert out.equal(drop(method, x, alpha=0.3, rescale="tensor", granularity="sample"))
    assert layer.eval()(x) is x and drop(method, x, training=False) is x
    assert "alpha=0.3" in repr(layer) and "'tensor'" in repr(layer) and "'sample'" in repr(layer)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_copy_and_pickle_carry_alpha(method):
    layer = MODULES[method](0.25)
    fresh = MODULES[method]()
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert float(other.alpha) == 0.25
    with torch.device("meta"):
        assert "alpha=?" in repr(MODULES[method]())


@pytest.mark.parametrize("method", METHODS)
def test_alpha_of_any_kind_of_number(method):
    for alpha in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5, requires_grad=True)):
        layer = copy.deepcopy(MODULES[method](alpha))
        assert float(layer.alpha) == 0.5 and not layer.alpha.requires_grad
    for alpha in (torch.tensor(2.0), torch.tensor(math.nan), 2, True):
        with pytest.raises((TypeError, ValueError), match="alpha is"):
            MODULES[method](alpha)
    assert top_beta_threshold(maps(1, 1, 4, 4), np.int64(20)).equal(top_beta_threshold(maps(1, 1, 4, 4), 20))


def test_schedule_moves_the_buffer_in_place_and_checks_what_it_loads():
    layer = ad.AttentionDrop2d()
    place = layer.alpha.data_ptr()
    schedule = ad.LinearSchedule(layer, 0, np.float64(0.5), np.int64(2))
    for want in (0.25, 0.5, 0.5):
        schedule.step()
        assert float(layer.alpha) == want and layer.alpha.data_ptr() == place
    assert json.loads(json.dumps(schedule.state_dict())) == {"start": 0.0, "end": 0.5, "steps": 2, "count": 3}
    for change in ({"count": -5}, {"end": 7.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=str(*change.values())):
            schedule.load_state_dict(schedule.state_dict() | change)
    with pytest.raises(TypeError, match="layers"):
        schedule.load_state_dict(schedule.state_dict() | {"layers": []})


@pytest.mark.parametrize("training", [True, False])
def test_torch_fx_sees_a_layer_as_one_node(training):
    model = network().train(training)
    traced = torch.fx.symbolic_trace(model)
    x = maps(2, 3, 16, 16)
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    assert traced(x).equal(want)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**400), st.integers(0, 10**400))
def test_rounding_takes_no_schedule_out_of_the_unit_interval(start, end, steps, count):
    state = {"start": start, "end": end, "steps": steps, "count": count}
    ad.LinearSchedule(ad.AttentionDrop2d()).load_state_dict(state)  # `set_alpha` refuses −1e-17 and 1 + 1e-16


def test_a_checkpoint_with_an_alpha_that_is_none_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ad.SoftMaskDrop2d())
    for bad in (1.5, -0.1, math.nan):
        for assign in (False, True):
            with pytest.raises(ValueError, match=f"alpha is {bad}"):
                model.load_state_dict(model.state_dict() | {"1.alpha": torch.tensor(bad)}, assign=assign)


def network(method="ad", **kwargs):
    torch.manual_seed(0)
    return ad.ResNet18(width=4, drop=lambda: MODULES[method](0.5, **kwargs))


@pytest.mark.parametrize("method", METHODS)
def test_autocast_and_half_models(method):
    layer = MODULES[method](0.5)
    conv = nn.Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(conv(maps(2, 3, 8, 8)))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    out.float().sum().backward()
    assert conv.weight.grad.isfinite().all()
    assert layer.bfloat16()(maps(2, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_transforms_of_torch_func(method):
    x, t = maps(2, 3, 6, 6), maps(2, 3, 6, 6, seed=1)
    f = lambda x: drop(method, x, alpha=0.5)
    torch.manual_seed(0)
    grad, y = torch.func.grad_and_value(lambda x: (f(x) * t).sum())(x)
    torch.testing.assert_close((grad * x).sum(), y)  # y is linear in x, its mask being a constant
    y, tangent = torch.func.jvp(f, (x,), (x,))
    torch.testing.assert_close(tangent, y)
    assert torch.vmap(f, randomness="different")(x[None].expand(4, -1, -1, -1, -1)).shape == (4, *x.shape)
    with pytest.raises(ValueError, match="torch.func is at work; use backend='auto'"):
        torch.func.grad(lambda x: drop(method, x, alpha=0.5, backend="fast").sum())(x)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_forward_mode(method, backend):
    x, t = maps(2, 3, 6, 6), maps(2, 3, 6, 6, seed=1)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, t)
        y, tangent = torch.autograd.forward_ad.unpack_dual(drop(method, dual, alpha=0.5, backend=backend))
    torch.testing.assert_close(tangent * x, y * t)  # both are x, or t, times mask and factor


# Data-parallel training


def train_in_parallel(rank, folder):
    "One of two processes: a backward pass with a drop layer under DDP, and the same for its own images alone."
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), ad.AttentionDrop2d(0.5))
    net[2].set_alpha(0.1 + 0.4 * (rank == 0))  # DDP hands out the first process's buffers
    model = nn.parallel.DistributedDataParallel(net)
    x = maps(4, 3, 8, 8, seed=rank)
    found = {}
    for name, net_or_ddp in (("together", model), ("alone", net)):
        torch.manual_seed(10 + rank)  # each process has draws of its own, the same for both
        net.zero_grad()
        net_or_ddp(x).square().sum().backward()
        found[name] = net[0].weight.grad.clone()
    torch.save(found | {"alpha": net[2].alpha.clone()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_gradients_and_alpha_but_no_draws(tmp_path):
    torch.multiprocessing.spawn(train_in_parallel, (str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert a["alpha"].equal(b["alpha"]) and a["alpha"] == 0.5
    torch.testing.assert_close(a["together"], (a["alone"] + b["alone"]) / 2)
    assert a["together"].equal(b["together"]) and not a["alone"].equal(b["alone"])


# Compile and export


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", METHODS)
def test_compiles_whole_and_alpha_moves_without_recompiling(method, granularity, no_recompiles):
    layer = MODULES[method](granularity=granularity)
    schedule = ad.LinearSchedule(layer, 0.0, 1.0, steps=4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = maps(8, 4, 8, 8).requires_grad_()
    assert compiled(x).equal(x)
    for _ in range(4):
        schedule.step()
        out = compiled(x)
        out.sum().backward()
    full = drop(method, x, gamma=torch.ones(8, 4, 8, 8))  # α = 1: every coin falls on 1
    torch.testing.assert_close(out, full)


@pytest.mark.parametrize("method", METHODS)
def test_compiles_for_dynamic_shapes(method, no_recompiles):
    compiled = torch.compile(MODULES[method](0.5, rescale="none"), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 3, 8, 6), (6, 5, 9, 7), (2, 7, 16, 12)):
        x = maps(*shape)
        assert 0 < (compiled(x) != x).float().mean() < 0.6  # dropped, but not everywhere


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile's default backend needs a C++ compiler")
def test_default_backend_trains_a_block(no_recompiles):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), ad.AttentionDrop2d())
    schedule = ad.LinearSchedule(model, 0.0, 0.5, steps=2)
    compiled = torch.compile(model, fullgraph=True)
    x = maps(4, 3, 16, 16)
    eager = copy.deepcopy(model)
    torch.testing.assert_close(compiled(x), eager(x), rtol=1e-3, atol=1e-4)  # α = 0: no coins, so the same numbers
    for _ in range(2):
        schedule.step()
        compiled(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("how", [dict(), dict(tracing_mode="symbolic"), dict(pre_dispatch=True)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_make_fx_draws_anew(method, how):
    x = maps(2, 3, 8, 8)
    graph = make_fx(lambda x: drop(method, x, alpha=0.5), **how)(x)
    assert not graph(x).equal(graph(x))


@pytest.mark.parametrize("method", METHODS)
def test_fake_tensors_pass(method):
    layer = MODULES[method](0.5)
    x = maps(2, 3, 8, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(x).shape == MODULES[method](0.5)(torch.empty(2, 3, 8, 8)).shape


@pytest.mark.parametrize("method", METHODS)
def test_a_default_device_or_dtype_changes_nothing(method):
    x = maps(2, 3, 8, 8)
    for backend in ("eager", "fast"):
        draw = lambda: drop(method, x, alpha=0.5, backend=backend, generator=torch.Generator().manual_seed(0))
        want = draw()
        with torch.device("meta"):
            assert draw().equal(want)
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            try:
                assert draw().equal(want) and MODULES[method]().alpha.dtype == torch.float32
            finally:
                torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_any_kind_of_number_will_do(method):
    x = maps(2, 3, 8, 8)
    for backend in ("eager", "fast"):
        draw = lambda alpha, beta: drop(
            method, x, alpha=alpha, beta=beta, backend=backend, generator=torch.Generator().manual_seed(0)
        )
        for number in (np.float16, np.float32, np.float64, Fraction):
            assert draw(number(0.5), number(20)).equal(draw(0.5, 20))
        assert draw(np.int8(1), np.uint8(20)).equal(draw(1.0, 20.0))


@pytest.mark.parametrize("method", METHODS)
def test_export_of_a_model_in_eval(method):
    model = network(method).eval()
    x = maps(2, 3, 16, 16)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


# Bad calls

X = torch.zeros(2, 3, 4, 4)
BAD_CALLS = {
    "integers": (TypeError, dict(x=X.int()), ["x has dtype torch.int32", "float32"]),
    "no tensor": (TypeError, dict(x=[1.0]), ["x is a list", "Tensor"]),
    "3-D": (ValueError, dict(x=X[0]), ["x has shape (3, 4, 4)", "4 dimensions"]),
    "empty planes": (ValueError, dict(x=X[..., :0]), ["(2, 3, 4, 0)", "W ≥ 1"]),
    "alpha above 1": (ValueError, dict(alpha=1.5), ["alpha is 1.5", "[0, 1]"]),
    "alpha below 0": (ValueError, dict(alpha=-0.1), ["alpha is -0.1", "[0, 1]"]),
    "alpha nan": (ValueError, dict(alpha=math.nan), ["alpha is nan", "[0, 1]"]),
    "alpha text": (TypeError, dict(alpha="0.1"), ["alpha is '0.1'", "[0, 1]"]),
    "alpha vector": (ValueError, dict(alpha=torch.ones(2)), ["alpha", "(2,)", "without dimensions"]),
    "beta 0": (ValueError, dict(beta=0), ["beta is 0", "<= 100"]),
    "beta 101": (ValueError, dict(beta=101.0), ["beta is 101.0", "<= 100"]),
    "beta text": (TypeError, dict(beta="20"), ["beta is '20'", "percent"]),
    "gamma shape": (ValueError, dict(gamma=X[..., :2]), ["gamma has shape (2, 3, 4, 2)", "(2, 3, 4, 4)"]),
    "gamma list": (TypeError, dict(gamma=[0, 1]), ["gamma is a list", "Tensor"]),
    "granularity": (ValueError, dict(granularity="pixel"), ["granularity is 'pixel'", "'element', 'map', 'sample'"]),
    "rescale": (ValueError, dict(rescale="sum"), ["rescale is 'sum'", "'none', 'literal', 'map', 'tensor'"]),
}


BAD = [
    (case, method)
    for case, (_, kwargs, _) in BAD_CALLS.items()
    for method in METHODS
    if not (method == "sm" and "beta" in kwargs)
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case, method", BAD)
def test_bad_calls_say_what_is_wrong(case, method, training):
    error, kwargs, says = BAD_CALLS[case]
    with pytest.raises(error) as e:
        drop(method, **({"x": X} | kwargs), training=training)
    assert all(text in str(e.value) for text in says)


@pytest.mark.parametrize("case, method", [(c, m) for c, m in BAD if not {"x", "gamma"} & set(BAD_CALLS[c][1])])
def test_modules_refuse_bad_arguments_at_construction(case, method):
    error, kwargs, says = BAD_CALLS[case]
    with pytest.raises(error) as e:
        MODULES[method](**kwargs)
    assert all(text in str(e.value) for text in says)


@pytest.mark.parametrize("function", [top_beta_threshold, shape_mask])
def test_equations_check_their_input_too(function):
    with pytest.raises(TypeError, match="torch.int32"):
        function(X.int(), 20)
    with pytest.raises(ValueError, match="beta is 0"):
        function(X, 0)
    with pytest.raises(ValueError, match="4 dimensions"):
        min_max_normalize(X[0])


BAD_SCHEDULES = [
    (dict(start=-1.0), "alpha is -1.0"),
    (dict(end=2), "alpha is 2"),
    (dict(steps=0), "steps is 0"),
    (dict(steps=1.5), "steps is 1.5"),
    (dict(steps=True), "steps is True"),
]


@pytest.mark.parametrize("kwargs, says", BAD_SCHEDULES)
def test_schedule_refuses_bad_arguments(kwargs, says):
    with pytest.raises(ValueError, match=says):
        ad.LinearSchedule(ad.AttentionDrop2d(), **kwargs)


def in_a_fresh_process(code):
    "What `code` prints in a Python that has imported nothing yet."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_fast_code_is_a_table_of_names():
    assert set(_FAST_CODE) == {"cpu", "cuda"}
    assert all(type(name) is str and name.startswith("attentiondrop_nb.speed.") for name in _FAST_CODE.values())


def test_fast_code_is_imported_at_its_first_use():
    code = """
import sys
import torch
import attentiondrop_nb as ad
loaded = lambda: sorted(name for name in sys.modules if name.startswith("attentiondrop_nb.speed."))
layer, x = ad.AttentionDrop2d(), torch.rand(1, 2, 4, 4)
seen = [loaded()]
ad.attention_drop2d(x, backend="eager")
layer.eval()(x)
seen.append(loaded())
layer.train()(x)
print(*seen, loaded())
"""
    assert in_a_fresh_process(code) == "[] [] ['attentiondrop_nb.speed.cpu', 'attentiondrop_nb.speed.planes']"


def test_fast_code_is_found_inside_torch_compile_too():
    code = """
import sys
import torch
from attentiondrop_nb.layers import layers

def count(x):
    return x * getattr(layers._FAST_FUNCTIONS, x.device.type).__module__.count("speed")

assert "attentiondrop_nb.speed.cpu" not in sys.modules
y = torch.compile(count, fullgraph=True, backend="aot_eager")(torch.ones(3))
assert "attentiondrop_nb.speed.cpu" in sys.modules
print(y.tolist())
"""
    assert in_a_fresh_process(code) == "[1.0, 1.0, 1.0]"


@pytest.mark.parametrize("name", ["fused", "sparse", "triton", None])
def test_an_unknown_backend_is_refused_with_the_allowed_ones(name):
    with pytest.raises(ValueError, match=f"backend is {name!r}; one of 'auto', 'eager', 'fast' is needed"):
        ad.attention_drop2d(torch.rand(1, 1, 4, 4), backend=name)
