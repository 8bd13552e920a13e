"What the related layers promise beyond the lesson: shapes, dtypes, layouts, gradients, checkpoints, compile, fx."
import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attentiondrop_nb.checks import FLOATS
from attentiondrop_nb.layers.layers import LinearSchedule
from attentiondrop_nb.layers.relatives import (
    DropBlock2d,
    ElementDropout2d,
    SpatialDropout2d,
    _element_dropout2d,
    _spatial_dropout2d,
    cutout,
    drop_block2d,
)
from attentiondrop_nb.layers.released import ReleasedAttentionDrop2d, plane_probability, released_attention_drop2d
from attentiondrop_nb.layers.removed import _MASKS, energy_removed, given_back, sample_mask, touched_share
from attentiondrop_nb.method.dropout import neighbours_r2

LIBRARY = (ElementDropout2d, SpatialDropout2d, DropBlock2d)
LAYERS = (*LIBRARY, ReleasedAttentionDrop2d)
FUNCTIONS = (_element_dropout2d, _spatial_dropout2d, drop_block2d, released_attention_drop2d)
METHODS = list(_MASKS)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def maps(*shape, dtype=torch.float32, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


# Cutout


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.data())
def test_cutout_zeros_one_clipped_square_in_all_channels(n, c, h, w, data):
    length, seed = data.draw(st.integers(1, 2 * min(h, w))), data.draw(st.integers(0, 99))
    x = torch.rand(n, c, h, w) + 1
    out = cutout(x, length, seeded(seed))
    hole = out == 0
    assert out[~hole].equal(x[~hole]) and (hole == hole[:, :1]).all()
    half = length // 2
    for image in hole[:, 0]:
        rows = image.any(1).nonzero().flatten().tolist()
        columns = image.any(0).nonzero().flatten().tolist()
        assert image.sum() == len(rows) * len(columns)  # a rectangle ...
        for line, side in ((rows, h), (columns, w)):
            centres = [k for k in range(side) if line == list(range(max(k - half, 0), min(k - half + length, side)))]
            assert centres  # ... that some centre explains


def test_cutout_reaches_every_place_and_keeps_dtype_layout_and_input():
    x = torch.ones(4000, 1, 3, 4)
    corners = {tuple(p.nonzero()[0].tolist()) for p in cutout(x, 1, seeded())[:, 0] == 0}
    assert corners == {(i, j) for i in range(3) for j in range(4)} and x.min() == 1
    for dtype in FLOATS:
        y = torch.ones(2, 3, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        out = cutout(y, 4)
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert cutout(torch.full((1, 1, 2, 2), math.nan), 4).equal(torch.zeros(1, 1, 2, 2))  # the whole picture


@pytest.mark.parametrize("bad", [0, -1, 17, 2.0, True, None])
def test_cutout_names_a_bad_length(bad):
    with pytest.raises(ValueError, match="length is"):
        cutout(torch.ones(1, 1, 8, 9), bad)


# All layers


@pytest.mark.parametrize("layer", LAYERS)
def test_eval_and_alpha_zero_are_the_identity(layer):
    for x in (maps(2, 3, 9, 11), maps(2, 3, 9, 11).contiguous(memory_format=torch.channels_last), maps(0, 3, 8, 8)):
        assert layer(0.5).eval()(x) is x
        assert layer(0.0)(x).equal(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_dtype_shape_and_layout(layer, dtype, device):
    for shape in ((2, 40, 16, 16), (3, 5, 7, 12), (0, 3, 8, 8)):
        x = torch.rand(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        out = layer(0.3).to(device)(x)
        out.float().sum().backward()
        assert out.shape == x.shape and out.dtype == dtype and x.grad.isfinite().all()
        assert out.is_contiguous(memory_format=torch.channels_last) or not len(x)


BLOCKS_OF_ONE = [lambda a: DropBlock2d(a, 1), lambda a: ReleasedAttentionDrop2d(a, 1)]


@pytest.mark.parametrize("layer", [ElementDropout2d, SpatialDropout2d, *BLOCKS_OF_ONE])
def test_single_pixels(layer):
    x = torch.rand(500, 4, 1, 1) + 1
    torch.manual_seed(0)
    out = layer(0.5)(x)
    touched = (out / x - (out / x).amax()).abs() > 1e-3
    assert 0.05 < touched.float().mean() < 0.6  # some, and not all


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", LIBRARY)
def test_the_gradient_is_the_weight(layer, dtype):
    x = torch.rand(2, 6, 9, 9, dtype=dtype) + 1
    x.requires_grad_()
    torch.manual_seed(0)
    out = layer(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out / x).detach())
    assert (x.grad == 0).any() and (x.grad > 1).any()


@pytest.mark.parametrize("layer", LAYERS)
def test_bad_arguments_are_named(layer):
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            layer(bad)
    with pytest.raises(TypeError, match="torch.int64"):
        layer(0.1)(torch.ones(1, 1, 8, 8, dtype=torch.int64))
    for training in (True, False):
        with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
            layer(0.1).train(training)(torch.ones(3, 8, 8))


@pytest.mark.parametrize("bad", [0, 4, 2.5, True, "7"])
def test_drop_block_names_a_bad_block(bad):
    with pytest.raises(ValueError, match="block_size is"):
        DropBlock2d(0.1, bad)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 1, 6, 20), (1, 1, 20, 5)])
def test_a_block_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=f"7.*{shape[2]}×{shape[3]}"):
        DropBlock2d(0.1)(torch.ones(shape))
    with pytest.raises(ValueError, match="block_size is 41"):
        ReleasedAttentionDrop2d(0.1, 41)(torch.ones(shape))


@pytest.mark.parametrize("bad", [1, 1.0, -0.1, 20, None, True])
def test_released_names_a_bad_beta(bad):
    with pytest.raises(ValueError, match="beta is"):
        ReleasedAttentionDrop2d(0.1, 5, bad)


# α: schedules, checkpoints, copies


def network():
    return nn.Sequential(*(layer(0.1) for layer in LAYERS))


def test_a_schedule_moves_all_layers_and_p_follows():
    model = network()
    schedule = LinearSchedule(model, 0.0, 0.3, steps=3)
    for want in (0.0, 0.1, 0.2, 0.3, 0.3):
        assert all(math.isclose(float(m.alpha), want, abs_tol=1e-6) for m in model)
        assert all(m.p == float(m.alpha) for m in model if isinstance(m, LIBRARY))
        schedule.step()
    torch.manual_seed(0)
    assert abs((model[0](torch.ones(1, 1, 200, 200)) == 0).float().mean() - 0.3) < 0.02  # the number that is used


@pytest.mark.parametrize("assign", [False, True])
def test_loading_refreshes_p(assign):
    saved = network()
    LinearSchedule(saved, 0.7, 0.7)
    model = network()
    model.load_state_dict(saved.state_dict(), assign=assign)
    assert all(m.p == float(m.alpha) == saved[0].p for m in model[:3])
    torch.manual_seed(0)
    share = float((model[0](torch.ones(1, 1, 200, 200)) == 0).float().mean())
    assert abs(share - 0.7) < 0.02
    assert list(model.state_dict()) == [f"{i}.alpha" for i in range(4)]


def test_a_model_built_without_memory_takes_a_checkpoint():
    with torch.device("meta"):
        model = network()
    assert all(m.p == float(torch.tensor(0.1)) for m in model[:3])
    model = model.to_empty(device="cpu")
    saved = network()
    LinearSchedule(saved, 0.25, 0.25)
    model.load_state_dict(saved.state_dict())
    assert all(m.p == 0.25 for m in model[:3])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copied):
    model = network()
    twin = copied(model)
    LinearSchedule(twin, 0.5, 0.5)
    assert [m.p for m in twin[:3]] == [0.5] * 3 and all(m.p == float(torch.tensor(0.1)) for m in model[:3])
    twin.load_state_dict(model.state_dict())  # the hook went along
    assert all(m.p == model[0].p for m in twin[:3])


@pytest.mark.parametrize("layer", LIBRARY)
def test_one_seed_gives_one_draw(layer):
    x = maps(2, 8, 16, 16)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(layer(0.3)(x))
    assert outs[0].equal(outs[1]) and not outs[0].equal(outs[2])


class Elsewhere(torch.Tensor):
    "Stands for a tensor on a GPU: a layer reads it only where PyTorch's count says that it has changed."

    def __deepcopy__(self, memo):
        return self.as_subclass(torch.Tensor).clone().as_subclass(Elsewhere)


def fill(layer, alpha):
    layer.alpha.fill_(alpha)


def replace(layer, alpha):
    layer.alpha = torch.full_like(layer.alpha, alpha)


def copy_into(layer, alpha):
    layer.alpha.detach().copy_(torch.tensor(alpha))


def foreach(layer, alpha):
    torch._foreach_copy_([layer.alpha], [torch.full_like(layer.alpha, alpha)])


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("change", [fill, replace, copy_into, foreach])
@pytest.mark.parametrize("layer", LIBRARY)
def test_the_buffer_decides_whoever_wrote_it(layer, change, elsewhere):
    layer = layer(0.0)
    if elsewhere:
        layer.alpha = layer.alpha.as_subclass(Elsewhere)
    x = torch.rand(2, 8, 14, 14) + 1
    assert layer.p == 0 and layer(x).equal(x)
    for alpha in (1.0, 0.5, 0.0):
        change(layer, alpha)
        assert layer.p == alpha
        twin = copy.deepcopy(layer)
        for other in (0.25, 0.75, 1.0):  # as often as the first was changed
            change(twin, other)
        assert twin.p == 1 and not twin(x).equal(x) and layer.p == alpha


@pytest.mark.parametrize("layer", LIBRARY)
def test_an_averaged_model_drops_as_its_buffer_says(layer):
    model = layer(0.0)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    model.set_alpha(0.5)
    averaged.update_parameters(model)
    assert averaged.module.p == 0.5


@pytest.mark.parametrize("layer", LIBRARY)
def test_data_and_numpy_write_the_buffer_too(layer):
    layer = layer(0.0)
    layer.alpha.data.fill_(1.0)
    assert layer.p == 1
    layer.alpha.numpy()[...] = 0.5
    assert layer.p == 0.5


@pytest.mark.parametrize("layer", LAYERS)
def test_alpha_is_checked_as_a_number_and_clamped_as_a_tensor(layer):
    x = torch.rand(2, 8, 14, 14) + 1
    for bad in (0.3 - 3 * 0.1, 1.0000001, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            layer().set_alpha(bad)
        with pytest.raises(ValueError, match="alpha is"):
            layer().load_state_dict({"alpha": torch.tensor(bad) if bad != bad else torch.tensor(2.0)})
    for alpha, end in ((-0.5, 0.0), (2.0, 1.0), (math.nan, 0.0)):
        outs = []
        for value in (alpha, end):
            made = layer()
            made.alpha.fill_(value)
            torch.manual_seed(0)
            outs.append(made(x))
        assert outs[0].equal(outs[1])


# The released variant against autograd of plain loops


def released_scalar_loop(x, masked, beta):
    "The released variant, one scalar tensor at a time, so that autograd sees every step."
    n, c, h, w = x.shape
    mask = {}
    for i in range(n):
        for k in range(h):
            for j in range(w):
                column = [x[i, q, k, j] for q in range(c)]
                low = min(column)
                high = max(column)
                for q, v in enumerate(column):
                    hat = (v - low) / (high - low + 1e-8)
                    mask[i, q, k, j] = 1 - hat if masked[i, q] and hat > beta else torch.ones((), dtype=x.dtype)
    total = sum(mask.values())
    flat = [x[at] * mask[at] * len(mask) / total for at in sorted(mask)]
    return torch.stack(flat).view(x.shape)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_released_values_and_gradient_against_a_loop(seed, beta):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=gen)
    masked = torch.rand(2, 4, 1, 1, generator=gen) < 0.6
    weight = torch.randn(x.shape, dtype=torch.float64, generator=gen)
    results = []
    for f in (
        lambda t: released_attention_drop2d(t, block_size=1, beta=beta, gamma=masked),
        lambda t: released_scalar_loop(t, masked[..., 0, 0], beta),
    ):
        t = x.clone().requires_grad_()
        out = f(t)
        (out * weight).sum().backward()
        results.append((out.detach(), t.grad))
    torch.testing.assert_close(*(out for out, _ in results))
    torch.testing.assert_close(*(grad for _, grad in results))


def test_released_one_channel_and_equal_channels_pass():
    x = maps(3, 1, 8, 8)
    assert released_attention_drop2d(x, 1.0).equal(x)  # a single channel has nobody to be louder than
    same = x.expand(3, 5, 8, 8).contiguous()
    assert released_attention_drop2d(same, 1.0, gamma=torch.ones_like(same)).equal(same)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 24), st.floats(0, 1), st.floats(0, 1))
def test_released_probability(h, w, block_size, alpha, share):
    region = (torch.rand(1, 3, h, w, generator=seeded()) < share).float()
    if block_size // 2 >= min(h, w):
        with pytest.raises(ValueError, match="block_size is"):
            released_attention_drop2d(region, alpha, block_size)
        return
    for a in (alpha, torch.tensor(alpha)):
        p = plane_probability(region, a, block_size)
        r = block_size // 2
        gamma_0 = alpha / block_size**2 * h * w / ((h - r) * (w - r))
        assert gamma_0 <= 1 + 1e-9
        want = [min(1 - max(1 - gamma_0, 0) ** int(hits), 0.25) for hits in region.sum((2, 3)).flatten().tolist()]
        torch.testing.assert_close(p.flatten(), torch.tensor(want), atol=1e-5, rtol=1e-4)


def test_released_alpha_may_be_a_tensor_and_gamma_is_checked():
    x = maps(4, 8, 8, 8)
    pair = [released_attention_drop2d(x, a, generator=seeded(1)) for a in (0.5, torch.tensor(0.5))]
    assert pair[0].equal(pair[1]) and not pair[0].equal(x)
    with pytest.raises(ValueError, match="gamma has shape"):
        released_attention_drop2d(x, gamma=torch.ones(4, 7, 1, 1))


def test_released_a_sick_pixel_stays_where_it_is():
    x = maps(2, 4, 6, 6)
    x[0, 1, 2, 3] = math.nan
    out = released_attention_drop2d(x, gamma=torch.ones(2, 4, 1, 1))
    assert out.isnan().sum() == 1 and out[0, 1, 2, 3].isnan()


# Masks and measures


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_sample_mask(method, dtype):
    x = maps(3, 5, 9, 12, dtype=dtype).relu().requires_grad_()
    before = torch.get_rng_state()
    masks = [sample_mask(method, x, 0.5, seeded(k)) for k in (0, 0, 1)]
    assert torch.get_rng_state().equal(before)  # a generator was given: the global one is as it was
    assert masks[0].equal(masks[1]) and not masks[0].equal(masks[2])
    assert all(m.shape == x.shape and m.dtype == torch.float32 and not m.requires_grad for m in masks)
    assert masks[0].min() >= 0 and masks[0].max() == 1 and (masks[0] < 1).any()
    assert (sample_mask(method, x, 0.0, seeded()) == 1).all()
    torch.manual_seed(0)
    free = sample_mask(method, x, 0.5)
    assert not free.equal(sample_mask(method, x, 0.5))
    assert sample_mask(method, maps(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_sample_mask_names_a_bad_argument():
    with pytest.raises(ValueError, match="method is 'cutout'; one of 'dropout'"):
        sample_mask("cutout", maps(1, 1, 8, 8))
    with pytest.raises(ValueError, match="alpha is 2"):
        sample_mask("ad", maps(1, 1, 8, 8), 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(3, 7), st.floats(0.1, 10))
def test_given_back_is_lesson_00s_r2_over_the_touched_units(seed, h, w, scale):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, h, w, dtype=torch.float64, generator=gen)
    mask = torch.where(torch.rand(x.shape, generator=gen) < 0.3, torch.rand(x.shape, generator=gen).double(), 1.0)
    mask[0, 0] = 1  # a plane that nothing was taken from
    mask[1, 2, 0, 0] = 0.5
    back = given_back(x, mask)
    assert back <= 1
    assert math.isclose(back, neighbours_r2(x, (mask == 1).double()), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(given_back(scale * x, mask), back, rel_tol=1e-6, abs_tol=1e-6)  # units do not count


def test_given_back_does_not_reward_loud_planes():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, 32, 32, generator=gen) + 10 * torch.randn(
        1, 200, 1, 1, generator=gen
    )  # noise around very different means
    mask = torch.ones(32, 32)
    mask[2::4, 2::4] = 0
    assert abs(given_back(x, mask.expand_as(x)) + 1 / 8) < 0.03


def test_measures_at_the_ends():
    x = maps(2, 3, 8, 8)
    one = torch.ones_like(x)
    assert (touched_share(one), energy_removed(x, one)) == (0, 0) and math.isnan(given_back(x, one))
    assert (touched_share(0 * one), energy_removed(x, 0 * one)) == (1, 1) and given_back(x, 0 * one) <= 0
    assert math.isclose(energy_removed(x, one / 2), 3 / 4, rel_tol=1e-6)


# Compile and fx


class Sandwich(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.below = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = layer
        self.above = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return self.above(self.layer(self.below(x)))


@pytest.mark.parametrize("layer", LAYERS)
def test_compiles_and_alpha_moves_without_recompiling(layer):
    torch._dynamo.reset()
    model = Sandwich(layer(0.1))
    x = maps(2, 3, 16, 16)
    graphs = []
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    schedule = LinearSchedule(model, 0.0, 0.5, steps=12)
    torch.testing.assert_close(compiled(x), model.above(model.below(x)))  # α = 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(12):
            schedule.step()
            out = compiled(x)
            out.sum().backward()
    assert not torch.allclose(out, model.above(model.below(x)))
    assert len(graphs) == (2 if layer in LIBRARY else 1)


def test_compiled_eval_has_one_graph():
    torch._dynamo.reset()
    model = Sandwich(DropBlock2d(0.5)).eval()
    x = maps(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_torch_fx_sees_a_layer_as_one_node(layer, training):
    model = Sandwich(layer(0.3)).train(training)
    traced = torch.fx.symbolic_trace(model)
    x = maps(2, 3, 16, 16)
    outs = []
    for m in (model, traced):
        torch.manual_seed(0)
        outs.append(m(x))
    assert outs[0].equal(outs[1])
    ours = [
        node for node in traced.graph.nodes if getattr(node.target, "__module__", "").startswith("attentiondrop_nb.")
    ]
    assert len(ours) == 1
