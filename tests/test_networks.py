"The networks and `attach` beyond the lesson: many CNNs, compile, export, copies, files, devices, modes, errors."
import copy
import inspect
import io
import pickle
import shutil

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import attentiondrop_nb as ad
from attentiondrop_nb.layers.attach import Attached, attach
from attentiondrop_nb.layers.layers import drop_layers
from attentiondrop_nb.layers.relatives import SpatialDropout2d
from attentiondrop_nb.layers.released import ReleasedAttentionDrop2d
from attentiondrop_nb.training.resnet import PreActResNet18

DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]
NETWORKS = {"post": ad.ResNet18, "pre": PreActResNet18}
CNNS = {  # no dropout of their own, whose coins would differ once attached layers draw too
    "post": lambda: ad.ResNet18(width=4),
    "pre": lambda: PreActResNet18(width=4),
    "torchvision mobilenet": lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=10, dropout=0.0),
    "torchvision shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10),
    "torchvision resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    **{f"timm {name}": lambda name=name: timm.create_model(f"test_{name}", pretrained=False, num_classes=10)
       for name in ("resnet", "convnext", "efficientnet", "byobnet")},
}


def images(n=4, side=32, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def places_with_maps(model, x):
    "The names of all submodules of `model` that return a 4-D float tensor, each submodule once."
    names = []
    handles = []
    for name, module in model.named_modules():
        note = lambda m, i, o, name=name: names.append(name) if isinstance(o, torch.Tensor) and o.dim() == 4 else None
        handles.append(module.register_forward_hook(note))
    model(x)
    for handle in handles:
        handle.remove()
    return sorted(set(names))


def train_step(model, x):
    "Logits of `model` in training mode and the gradients of all its parameters."
    model.zero_grad()
    out = model.train()(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def hooks(model):
    return [hook for m in model.modules() for hook in m._forward_hooks.values()]


# Against somebody else's code


def random_norms(net):
    "`net` with random weights and biases in its batch norms, so that two cannot be swapped unseen."
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return net


@pytest.mark.parametrize("training", [True, False])
def test_the_numbers_are_those_of_torchvisions_resnet18(training):
    theirs = random_norms(seeded(torchvision.models.resnet18, num_classes=10))
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = nn.Identity()
    net = ad.ResNet18()
    net.load_state_dict(theirs.state_dict())
    x = images(2)
    torch.testing.assert_close(net.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)


def timm_names(name):
    "'stages.0.blocks.1.norm2.weight' -> 'layer1.1.bn2.weight', and so on."
    if name.startswith("stages"):
        _, stage, _, block, rest = name.split(".", 4)
        return f"layer{int(stage) + 1}.{block}.{rest.replace('norm', 'bn').replace('downsample.conv', 'downsample')}"
    for theirs, ours in (("stem.0", "conv1"), ("stem.1", "bn1"), ("norm", "bn_last"), ("head.fc", "fc")):
        name = name.replace(theirs, ours) if name.startswith(theirs) else name
    return name


@pytest.mark.parametrize("training", [True, False])
def test_the_numbers_are_those_of_timms_pre_activation_stages(training):
    torch.manual_seed(0)
    theirs = timm.models.resnetv2.ResNetV2(
        [2, 2, 2, 2], (64, 128, 256, 512), num_classes=10, basic=True, bottle_ratio=1.0,
        conv_layer=timm.layers.create_conv2d, norm_layer=timm.layers.BatchNormAct2d,
    )
    theirs.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())  # ours
    theirs.stages[0].blocks[0].norm1 = nn.Identity()  # its first block activates for itself
    random_norms(theirs)
    weights = {timm_names(k): v.flatten(1) if k == "head.fc.weight" else v for k, v in theirs.state_dict().items()}
    net = PreActResNet18()
    net.load_state_dict(weights)  # every name must be found, and none left over
    x = images(2)
    torch.testing.assert_close(net.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-4)


# Any place of any CNN


@pytest.mark.parametrize("cnn", CNNS)
def test_layers_behind_every_submodule_at_once(cnn):
    model = seeded(CNNS[cnn])
    x = images()
    model.eval()  # so that finding the places leaves no trace in running means
    places = places_with_maps(model, x)
    assert len(places) > 10
    plain = copy.deepcopy(model)
    keys = list(model.state_dict())
    handle = attach(model, {name: lambda: ad.AttentionDrop2d(0.0) for name in places})
    assert list(model.state_dict()) == keys and len(drop_layers(model)) == len(handle.layers) == len(places)
    for ours, theirs in zip(train_step(model, x), train_step(plain, x), strict=True):
        assert ours.equal(
            theirs
        )  # α = 0 is the identity to the bit, for gradients too, and harms no in-place operation
    ad.LinearSchedule(model, 1.0, 1.0)
    assert model.eval()(x).equal(plain.eval()(x))  # the same running means, and eval mode is not touched
    dropped = train_step(model, x)
    assert all(t.isfinite().all() for t in dropped) and not torch.allclose(dropped[0], train_step(plain, x)[0])
    handle.remove()
    plain.load_state_dict(model.state_dict())
    assert not hooks(model) and all(a.equal(b) for a, b in zip(train_step(model, x), train_step(plain, x), strict=True))


def test_a_layer_works_each_time_its_submodule_is_called():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x))

    model = Twice()
    x = images()
    attach(model, {"act": lambda: ad.AttentionDrop2d(1.0)})
    once = ad.attention_drop2d(x.relu(), 1.0)
    assert model(x).equal(ad.attention_drop2d(once, 1.0)) and not model(x).equal(once)


def test_the_submodule_decides_about_the_mode():
    model = seeded(ad.ResNet18, width=4)
    x = images()
    attach(model, {"layer1": lambda: ad.AttentionDrop2d(1.0)})
    model.train()
    model.layer1.eval()  # a frozen stage in a model that trains
    got = []
    model.layer1[-1].register_forward_hook(lambda m, i, o: got.append(o))
    model.layer1.register_forward_hook(lambda m, i, o: got.append(o))
    model(x)
    assert got[0] is got[1]
    model.layer1.train()
    model(x)
    assert got[3].equal(ad.attention_drop2d(got[2], 1.0)) and not got[3].equal(got[2])


def test_layers_without_buffers_can_be_attached_too():
    model = seeded(ad.ResNet18, width=4)
    x = images()
    with attach(model, {"layer2": lambda: nn.Dropout2d(1.0)}):
        drop_everything = model(x)
        with pytest.raises(ValueError, match="no drop layer"):
            ad.LinearSchedule(model)  # it has no α
    assert (drop_everything == drop_everything[:1]).all()  # nothing of the images gets through


# The schedule


def test_schedule_moves_attached_and_built_in_layers():
    model = ad.ResNet18(width=4, drop=ad.AttentionDrop2d)
    handle = attach(model, {"layer3": ad.AdaptiveMaskDrop2d, "layer4.0.conv1": ad.SoftMaskDrop2d})
    schedule = ad.LinearSchedule(model, 0.0, 0.5, steps=2)
    for want in (0.25, 0.5):
        schedule.step()
        alphas = [float(layer.alpha) for layer in (*handle.layers.values(), *model.drop.values())]
        assert alphas == [want] * 4
    handle.remove()
    assert len(drop_layers(model)) == 2


# Copies and files


def by_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


def by_torch_save(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save])
def test_a_copy_has_layers_and_a_handle_of_its_own(duplicate):
    model = seeded(ad.ResNet18, width=4)
    x = images()
    handle = attach(model, {"layer1": lambda: ad.AttentionDrop2d(0.25)})
    twin, twin_handle = duplicate((model, handle))
    assert isinstance(twin_handle, Attached) and drop_layers(twin) == list(twin_handle.layers.values())
    ad.LinearSchedule(twin, 1.0, 1.0)
    assert float(handle.layers["layer1"].alpha) == 0.25 and float(twin_handle.layers["layer1"].alpha) == 1.0
    handle.remove()
    assert not hooks(model) and len(hooks(twin)) == 1
    full = attach(model, {"layer1": lambda: ad.AttentionDrop2d(1.0)})
    assert twin(x).equal(model(x))
    full.remove()
    twin_handle.remove()
    assert not hooks(twin) and twin(x).equal(model(x))


def test_the_model_alone_can_be_copied():
    model = ad.ResNet18(width=4)
    handle = attach(model, {"layer1": lambda: ad.AttentionDrop2d(0.25)})
    twin = copy.deepcopy(model)
    handle.remove()
    handle.remove()  # once more does no harm
    ad.LinearSchedule(twin, 1.0, 1.0)
    assert float(handle.layers["layer1"].alpha) == 0.25 and not hooks(model) and len(hooks(twin)) == 1


def test_checkpoints_are_those_of_the_plain_model():
    plain = seeded(ad.ResNet18, width=4)
    model = ad.ResNet18(width=4)
    attach(model, {"layer1": ad.AttentionDrop2d})
    model.load_state_dict(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert model.eval()(images()).equal(plain.eval()(images()))


# Devices and dtypes


@pytest.mark.parametrize("device", DEVICES)
def test_layers_follow_a_model_that_moves(device):
    model = ad.ResNet18(width=4)
    handle = attach(model, {"layer1": ad.AttentionDrop2d})
    out = model.to(device)(images().to(device))
    alpha = handle.layers["layer1"].alpha
    assert out.device.type == alpha.device.type == device and alpha.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_alpha_stays_float32_in_a_model_of_another_dtype(dtype):
    model = seeded(ad.ResNet18, width=4).to(dtype)
    handle = attach(model, {"layer1": lambda: ad.AttentionDrop2d(0.1)})
    out = model.to(dtype)(images().to(dtype))
    assert out.dtype == dtype and out.isfinite().all()
    assert handle.layers["layer1"].alpha.equal(torch.tensor(0.1))


def test_autocast():
    model = seeded(ad.ResNet18, width=4)
    attach(model, {name: lambda: ad.AttentionDrop2d(0.5) for name in ("conv1", "layer1", "layer2")})
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images())
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in model.parameters())


# Compile and export


COMPILED = {  # small ones: compiling takes its time
    "post": (lambda: ad.ResNet18(width=4, drop=ad.AttentionDrop2d), ["layer1.0.conv1", "layer2"]),
    "pre": (lambda: PreActResNet18(width=4, drop=ad.AttentionDrop2d), ["layer1.0.conv1", "layer2"]),
    "torchvision": (
        lambda: torchvision.models.squeezenet1_1(weights=None, dropout=0.0),
        ["features.3", "features.6.squeeze"],
    ),
    "timm": (lambda: timm.create_model("test_resnet", pretrained=False), ["layer1", "layer2.0.bn2"]),
}


@pytest.mark.parametrize("cnn", COMPILED)
def test_compiles_whole_and_alpha_moves_without_recompiling(cnn, no_recompiles):
    make, names = COMPILED[cnn]
    model = seeded(make)
    x = images()
    attach(model, dict.fromkeys(names, ad.AttentionDrop2d))
    schedule = ad.LinearSchedule(model, 0.0, 1.0, steps=2)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), eager(x))
    for _ in range(2):
        schedule.step()
        at_one = compiled(x)
        at_one.square().sum().backward()
    assert not torch.allclose(at_one, eager(x))
    ad.LinearSchedule(eager, 1.0, 1.0)  # α = 1: every coin falls on 1
    torch.testing.assert_close(at_one, eager(x))


def test_compiled_model_sees_layers_come_and_go():
    torch._dynamo.reset()
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images()
    plain = compiled(x)
    for _ in range(2):
        with attach(model, {"2": lambda: ad.AttentionDrop2d(1.0)}):
            dropped = compiled(x)
            torch.testing.assert_close(dropped, model(x))
            assert not torch.allclose(dropped, plain)
            torch.testing.assert_close(compiled.eval()(x), model(x))
        torch.testing.assert_close(compiled.train()(x), plain)
    torch._dynamo.reset()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile's default backend needs a C++ compiler")
def test_default_backend_trains_with_an_attached_layer(no_recompiles):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    attach(model, {"2": ad.AttentionDrop2d})
    schedule = ad.LinearSchedule(model, 0.0, 1.0, steps=1)
    compiled = torch.compile(model, fullgraph=True)
    x = images(side=16)
    eager = copy.deepcopy(model)
    torch.testing.assert_close(compiled(x), eager(x), rtol=1e-3, atol=1e-4)
    schedule.step()
    ad.LinearSchedule(eager, 1.0, 1.0)
    out = compiled(x)
    torch.testing.assert_close(out, eager(x), rtol=1e-3, atol=1e-4)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_export_of_a_model_in_eval():
    model = seeded(PreActResNet18, width=4)
    x = images()
    attach(model, {"layer1": ad.AttentionDrop2d})
    torch.testing.assert_close(torch.export.export(model.eval(), (x,)).module()(x), model(x))


@pytest.mark.parametrize("make", [ad.AttentionDrop2d, SpatialDropout2d, ReleasedAttentionDrop2d, nn.Dropout2d])
@pytest.mark.parametrize("training", [True, False])
def test_torch_fx_traces_an_attached_layer(make, training):
    model = seeded(ad.ResNet18, width=4)
    x = images()
    attach(model, {"layer1": lambda: make(0.5), "layer2.0": lambda: make(0.5)})
    traced = torch.fx.symbolic_trace(model.train(training))
    assert seeded(traced, x).equal(seeded(model, x))
    assert [node.name for node in traced.graph.nodes if "drop" in node.name] or not training
    assert list(model.state_dict()) == list(ad.ResNet18(width=4).state_dict())


# Errors


class Odd(nn.Module):
    "Submodules that return what no drop layer can take, and some that are never called."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.flat = nn.Flatten()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.blocks = nn.ModuleList([nn.ReLU()])
        self.holder = nn.Module()
        self.same = self.conv

    def forward(self, x):
        x, _ = self.pool(self.conv(x))
        return self.flat(self.blocks[0](x))


@pytest.mark.parametrize(
    "places, error, says",
    [
        ({"blocks.1": ad.AttentionDrop2d}, ValueError, ["Odd has no submodule 'blocks.1'", "'blocks.0'"]),
        ({"xyz": ad.AttentionDrop2d}, ValueError, ["'xyz'", "'conv', 'flat', 'pool', 'blocks', 'holder'"]),
        ({3: ad.AttentionDrop2d}, ValueError, ["no submodule 3"]),
        ({"blocks": ad.AttentionDrop2d}, ValueError, ["'blocks' is a ModuleList", "never called"]),
        ({"holder": ad.AttentionDrop2d}, ValueError, ["'holder' is a Module", "never called"]),
        ({"conv": ad.AttentionDrop2d, "same": ad.AttentionDrop2d}, ValueError, ["'conv' and 'same'"]),
        ({"conv": ad.AttentionDrop2d()}, TypeError, ["'conv'", "a function that makes a layer"]),
        ({"conv": 0.1}, TypeError, ["'conv': 0.1", "a function that makes a layer"]),
        ({"conv": lambda: None}, TypeError, ["'conv'", "made None"]),
        ({"conv": lambda: nn.BatchNorm2d(4)}, TypeError, ["'conv'", "BatchNorm2d", "without parameters"]),
        ({"conv": lambda: ad.AttentionDrop2d(2.0)}, ValueError, ["alpha is 2.0"]),
    ],
)
def test_a_bad_place_is_one_error_and_attaches_nothing(places, error, says):
    model = Odd()
    with pytest.raises(error) as e:
        attach(model, {"blocks.0": ad.AttentionDrop2d} | places)
    assert all(text in str(e.value) for text in says) and not hooks(model)


@pytest.mark.parametrize("places", [["conv"], "conv", [("conv", ad.AttentionDrop2d)], None])
def test_places_are_a_dict(places):
    with pytest.raises(TypeError, match="places is .*; a dict is needed, e.g. {'layer1': AttentionDrop2d}"):
        attach(Odd(), places)


def test_a_dict_of_modules_with_a_forward_of_its_own_is_a_place():
    "The dense blocks of torchvision's and timm's DenseNet are such."

    class Dense(nn.ModuleDict):
        def forward(self, x):
            return torch.cat([x, *(layer(x) for layer in self.values())], 1)

    model = nn.Sequential(Dense({"same": nn.Identity()}))
    attach(model, {"0": lambda: ad.AttentionDrop2d(1.0, 100.0, rescale="none")})
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    by_hand = torch.tensor([[0.0, 0.75], [1.0, 0.0]])  # 1 · 3/4, 2 · 2/4, 4 · 0/4
    assert model(x).equal(by_hand.expand(1, 2, 2, 2))
    densenet = torchvision.models.densenet121(weights=None)
    assert len(attach(densenet, {"features.denseblock1": ad.AttentionDrop2d}).layers) == 1


def test_a_taken_place():
    model = Odd()
    handle = attach(model, {"conv": ad.AttentionDrop2d})
    for name in ("conv", "same"):
        with pytest.raises(ValueError, match=rf"'{name}' has an attached drop layer already; call remove\(\)"):
            attach(model, {"blocks.0": ad.AttentionDrop2d, name: ad.AttentionDrop2d})
    assert len(hooks(model)) == 1
    handle.remove()
    attach(model, {"same": ad.AttentionDrop2d})


NO_MAP = r"'flat' returns a torch.float32 tensor of shape \(4, 900\)"


@pytest.mark.parametrize("name, says", [("flat", NO_MAP), ("pool", "'pool' .* tuple")])
@pytest.mark.parametrize("training", [True, False])
def test_an_output_that_is_no_map_is_an_error_at_the_first_forward(name, says, training):
    model = Odd().train(training)
    with attach(model, {name: ad.AttentionDrop2d}), pytest.raises(ValueError, match=says):
        model(images())
    assert model(images()).shape == (4, 900)  # and the handle has gone


def test_tokens_are_no_maps():
    model = timm.create_model("test_vit", pretrained=False)
    attach(model, {"blocks.0": ad.AttentionDrop2d})
    with pytest.raises(ValueError, match="'blocks.0' returns a torch.float32 tensor of shape"):
        model(images(side=160))


# The two networks


def test_both_networks_take_the_same_arguments():
    assert inspect.signature(PreActResNet18.__init__) == inspect.signature(ad.ResNet18.__init__)


@pytest.mark.parametrize("name", NETWORKS)
def test_numpys_integers_are_sizes_and_true_is_none(name):
    model = NETWORKS[name](np.array([0, 6]).max() + 1, np.int8(4))
    assert model.eval()(images()).shape == (4, 7) and "np." not in repr(model)
    for bad in (dict(num_classes=True), dict(width=4.0), dict(num_classes=np.int64(0))):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*a whole number"):
            NETWORKS[name](**bad)


@pytest.mark.parametrize("name", NETWORKS)
def test_drop_layers_stand_where_drop_after_says(name):
    model = seeded(NETWORKS[name], width=4, drop=lambda: ad.AttentionDrop2d(1.0), drop_after=("layer2", "layer4"))
    plain = seeded(NETWORKS[name], width=4)
    plain.load_state_dict(model.state_dict(), strict=False)
    got = []
    model.layer3.register_forward_pre_hook(lambda m, i: got.append(i[0]))
    plain.layer2.register_forward_hook(lambda m, i, o: got.append(o))
    model(images())
    plain(images())
    assert got[0].equal(ad.attention_drop2d(got[1], 1.0)) and not got[0].equal(got[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_classifier_pools(name):
    model = seeded(NETWORKS[name], 7, 4).eval()
    x = images()
    maps = model.features(x)
    assert maps.shape == (4, 32, 4, 4) and maps.min() == 0
    torch.testing.assert_close(model(x), maps.flatten(2).mean(2) @ model.fc.weight.T + model.fc.bias)
