"""`rmsfast.torch` beside `torch.optim.RMSprop` and `rmsfast.RMSProp`: behaviour, numbers, state, kinds of tensors."""

import copy
import doctest
import functools
import inspect
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rmsfast

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402
from rmsfast import torch_tensors  # noqa: E402
from rmsfast._core import tensors as _tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what PyTorch says about itself
Theirs = torch.optim.RMSprop
PLAIN = [{}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.5, "centered": True, "weight_decay": 0.1}]
OWN = {
    "eps_inside_sqrt": [False, True],
    "lr_in_momentum": [False, True],
    "initial_square_avg": [0.0, 1.0],
    "decoupled_weight_decay": [False, True],
    "nesterov": [False, True],
    "bias_correction": [False, True],
    "momentum": [0.9, 0.0],
    "centered": [False, True],
    "maximize": [False, True],
    "weight_decay": [0.0, 0.05],
    "clip_weights": [None, 0.7],
    "ema_decay": [None, 0.9],
}


def version():
    return tuple(int(number) for number in torch.__version__.split(".")[:2])


needs_names = pytest.mark.skipif(version() < (2, 6), reason="this PyTorch has no named parameters")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20261121)


@pytest.fixture(params=["exchange", "methods"])
def looking(request):
    """Tensors show themselves through DLPack's exchange API, where this PyTorch has it, or through their methods."""
    has_exchange = set_up()
    if request.param == "exchange" and not has_exchange:
        pytest.skip("this PyTorch has no exchange API")
    if request.param == "methods":
        _tensors._forget_exchange()
    yield
    set_up()


def set_up():
    increment = torch_tensors.increment_version
    several = torch_tensors.takes_several(increment)
    return _tensors.set_up(
        torch.Tensor, torch_tensors.DTYPES, increment if several else torch_tensors.increment_one_by_one
    )


def parameters(*shapes, dtype=torch.float64):
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def give_gradients(*lists, scale=1.0):
    """Give the same random gradients to parameters that correspond."""
    for row in zip(*lists, strict=True):
        grad = scale * torch.randn(row[0].shape, dtype=row[0].dtype)
        for p in row:
            p.grad = grad.clone()


def twins(first, second, *shapes, dtype=torch.float64, **settings):
    """Two optimizers over copies of the same parameters."""
    params = parameters(*shapes, dtype=dtype)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    return first(params, **settings), second(copies, **settings)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_both(a, b, steps=1):
    for _ in range(steps):
        give_gradients(params_of(a), params_of(b))
        a.step()
        b.step()


def assert_close(a, b, tolerance=1e-12):
    for p, q in zip(params_of(a), params_of(b), strict=True):
        scale = max(q.detach().abs().max().item(), 1.0) if q.numel() else 1.0
        assert (p - q).detach().abs().max().item() <= tolerance * scale if q.numel() else p.shape == q.shape


def is_native(optimizer):
    """Whether the kernel took all parameters in the last step."""
    return optimizer._plan is not None and not optimizer._others


# ---- The same class ----


def test_the_positional_part_of_the_signature_is_pytorchs():
    expected = list(inspect.signature(Theirs).parameters.values())
    actual = list(inspect.signature(ours.RMSprop).parameters.values())
    assert [(p.name, p.default) for p in actual[: len(expected)]] == [(p.name, p.default) for p in expected]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in actual[len(expected) :])
    assert issubclass(ours.RMSprop, torch.optim.Optimizer)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": -1},
        {"eps": -1e-8},
        {"alpha": -0.1},
        {"momentum": -1},
        {"weight_decay": -1},
        {"lr": float("nan")},
        {"lr": torch.ones(2)},
        {"params": []},
        {"params": torch.ones(3)},
        {"params": [1.0]},
        {"params": [torch.ones(3, requires_grad=True) * 2]},
        {"params": [{"params": [torch.ones(1)]}, {"params": {torch.ones(1)}}]},
        {"params": [("a", torch.ones(3)), torch.ones(3)]},
    ],
    ids=str,
)
def test_what_pytorch_refuses_is_refused_in_its_words(arguments):
    arguments = {"params": parameters(3), **arguments}
    with pytest.raises((ValueError, TypeError)) as theirs:
        Theirs(**arguments)
    with pytest.raises(type(theirs.value)) as mine:
        ours.RMSprop(**arguments)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_what_has_no_meaning_on_a_cpu_is_refused_with_a_reason(name):
    with pytest.raises(ValueError, match=rf"^{name}: True, expected False: "):
        ours.RMSprop(parameters(3), **{name: True})
    optimizer = ours.RMSprop(parameters(3))
    with pytest.raises(ValueError, match=rf"^{name}: True"):
        optimizer.add_param_group({"params": parameters(2), name: True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, "nesterov: True with momentum 0"),
        ({"bias_correction": True, "alpha": 1.0}, "bias_correction: True with beta 1"),
        ({"initial_square_avg": -1.0}, "Invalid initial_square_avg value: -1.0"),
        ({"num_threads": 0}, "num_threads: 0"),
    ],
)
def test_our_own_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ours.RMSprop(parameters(3), **settings)


def test_the_same_groups_repr_and_state_dict():
    a, b = twins(ours.RMSprop, Theirs, (3, 2), (4,), momentum=0.9, centered=True)
    step_both(a, b, 3)
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for key, entry in theirs["state"].items():
        assert mine["state"][key].keys() == entry.keys()
        for name, value in entry.items():
            assert type(mine["state"][key][name]) is type(value)
            assert mine["state"][key][name].dtype == value.dtype
            torch.testing.assert_close(mine["state"][key][name], value, rtol=1e-12, atol=0)
    for key, value in theirs["param_groups"][0].items():
        assert mine["param_groups"][0][key] == value
    assert repr(a).startswith("RMSprop (\nParameter Group 0\n    alpha: 0.99\n")
    assert list(a.state) == list(params_of(a))


def test_groups_have_settings_of_their_own_and_grow():
    params = parameters((3,), (2,), (4,))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    pair = []
    for cls, (w, b, late) in ((ours.RMSprop, params), (Theirs, copies)):
        optimizer = cls([{"params": [w]}, {"params": b, "lr": 0.1, "momentum": 0.9}], lr=1e-3)
        pair.append(optimizer)
        optimizer.late = late
    step_both(*pair, 3)
    for optimizer in pair:
        optimizer.add_param_group({"params": [optimizer.late], "centered": True})
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.param_groups[1]["weight_decay"] = 0.1
    step_both(*pair, 3)
    assert_close(*pair)
    assert is_native(pair[0])


@needs_names
def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = ours.RMSprop(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_a_rate_in_a_tensor_is_read_at_every_step():
    a, b = twins(ours.RMSprop, Theirs, (5,), lr=torch.tensor(0.1, dtype=torch.float64))
    for rate in (0.1, 0.01, 0.0, 0.5):
        a.param_groups[0]["lr"].fill_(rate)  # one tensor for both
        step_both(a, b)
    assert_close(a, b)
    one = ours.RMSprop(parameters(3), lr=torch.tensor([0.1]))
    give_gradients(params_of(one))
    one.step()


def test_closures():
    losses = []
    for cls in (ours.RMSprop, Theirs):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1).double()
        optimizer = cls(model.parameters())
        x = torch.randn(8, 4, dtype=torch.float64)

        def closure(optimizer=optimizer, model=model, x=x):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        with torch.no_grad():  # the closure has gradients all the same
            losses.append([optimizer.step(closure).item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("foreach", [None, True])
def test_zero_grad(set_to_none, foreach):
    optimizer = ours.RMSprop(parameters(3, 2), foreach=foreach)
    give_gradients(params_of(optimizer))
    optimizer.zero_grad(set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in params_of(optimizer))


def test_hooks_are_called_once_with_pytorchs_arguments():
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    calls = {}
    for cls in (ours.RMSprop, Theirs):
        seen = calls[cls] = []
        optimizer = cls(parameters(3))
        give_gradients(params_of(optimizer))
        pre = lambda o, args, kwargs, seen=seen: seen.append(("pre", len(args), kwargs))  # noqa: E731
        post = lambda o, args, kwargs, seen=seen: seen.append(("post", len(args), kwargs, o.state != {}))  # noqa: E731
        handles = [
            optimizer.register_step_pre_hook(pre),
            register_optimizer_step_pre_hook(pre),
            register_optimizer_step_post_hook(post),
            optimizer.register_step_post_hook(post),
        ]
        optimizer.step()
        for handle in handles:
            handle.remove()
        optimizer.step()
    assert calls[ours.RMSprop] == calls[Theirs]
    assert len(calls[Theirs]) == 4


def test_a_pre_hook_may_change_the_arguments():
    optimizer = ours.RMSprop(parameters(3))
    give_gradients(params_of(optimizer))
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


def test_a_subclass_with_a_step_of_its_own():
    class Twice(ours.RMSprop):
        def step(self, closure=None):
            super().step(closure)
            return super().step()

    a, b = twins(Twice, ours.RMSprop, (3,))
    give_gradients(params_of(a), params_of(b))
    a.step()
    b.step()
    b.step()
    assert_close(a, b, 0)


def test_the_profiler_sees_the_step_by_name():
    optimizer = ours.RMSprop(parameters(3))
    give_gradients(params_of(optimizer))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = [event.name for event in profile.events()]
    assert names.count("Optimizer.step#RMSprop.step") == 1


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_go_on_as_the_original_would(how):
    optimizer = ours.RMSprop(parameters((3, 2), (4,)), momentum=0.9, nesterov=True, num_threads=1)
    give_gradients(params_of(optimizer))
    optimizer.step()
    twin = how(optimizer)
    assert twin.num_threads == 1
    assert all(p is not q for p, q in zip(params_of(optimizer), params_of(twin), strict=True))
    step_both(optimizer, twin, 3)
    assert_close(optimizer, twin, 0)


def test_parameters_without_gradients_are_left_alone_and_have_no_state():
    a, b = twins(ours.RMSprop, Theirs, (3,), (4,), (2,))
    for k in range(4):
        give_gradients(params_of(a), params_of(b))
        for optimizer in (a, b):
            params_of(optimizer)[k % 3].grad = None
            if k == 0:
                params_of(optimizer)[2].grad = None
            optimizer.step()
        assert [p in a.state for p in params_of(a)] == [p in b.state for p in params_of(b)]
    assert_close(a, b)
    assert [int(a.state[p]["step"]) for p in params_of(a)] == [int(b.state[p]["step"]) for p in params_of(b)]


# ---- Numbers ----


def random_settings(rng):
    return {
        "lr": 10 ** rng.uniform(-4, -1),
        "alpha": rng.choice([0.0, 0.5, 0.9, 0.99]),
        "eps": rng.choice([1e-10, 1e-8, 1e-3, 1.0]),
        "weight_decay": rng.choice([0, 0.01, 0.3]),
        "momentum": rng.choice([0, 0.5, 0.99]),
        "maximize": bool(rng.integers(2)),
        "foreach": rng.choice([None, True, False]),
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("centered", [False, True])
def test_a_hundred_steps_in_float64(seed, centered, looking):
    """Where v − m² cancels, its rounding is divided by what is left; with a large ε that cannot matter."""
    rng = np.random.default_rng(seed)
    settings = random_settings(rng) | {"centered": centered}
    if centered:
        settings["eps"] = max(settings["eps"], 1e-3)
        settings["alpha"] = 0.9
    torch.manual_seed(seed)
    a, b = twins(ours.RMSprop, Theirs, (7, 5), (11,), (), (2, 0), (3, 1, 4), **settings)
    step_both(a, b, 100)
    assert_close(a, b, 1e-9 if centered else 1e-12)
    assert is_native(a)


@pytest.mark.parametrize("seed", range(10))
def test_models_train_alike(seed):
    losses = []
    for cls in (ours.RMSprop, Theirs):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 3),
        ).double()
        optimizer = cls(model.parameters(), lr=1e-3, momentum=0.9 * (seed % 2))
        x, y = torch.randn(20, 1, 8, 8, dtype=torch.float64), torch.randint(3, (20,))
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_one_step_in_float32_is_within_two_units_in_the_last_place(seed):
    """But for a few elements: either of the two may be 4 units away from the exact result, and then they may be as far
    from each other. Weight decay is apart: where it cancels with the gradient, their sum's rounding is divided by what
    is left.
    """
    settings = random_settings(np.random.default_rng(seed)) | {"weight_decay": 0}
    a, b = twins(ours.RMSprop, Theirs, (100_000,), dtype=torch.float32, **settings)
    before = params_of(b)[0].detach().clone()
    step_both(a, b)
    p, q = params_of(a)[0].detach(), params_of(b)[0].detach()
    size = torch.maximum(before.abs(), (q - before).abs()).numpy()
    units = (p - q).abs().numpy() / np.spacing(size)
    assert (units <= 2).mean() > 0.99
    assert units.max() <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("seed", range(14))
def test_the_bits_are_those_of_the_native_optimizer(dtype, seed, looking, short_stretches):
    """The same kernel, the same bits: whatever holds for `rmsfast.RMSProp` holds here."""
    rng = np.random.default_rng(seed)
    settings = {name: choices[rng.integers(2)] for name, choices in OWN.items()}
    settings["nesterov"] &= settings["momentum"] > 0
    params = parameters((6, 5), (7,), (), dtype=dtype)
    arrays = [p.detach().numpy().copy() for p in params]
    native = rmsfast.RMSProp(arrays, 0.01, 0.9, 1e-7, **settings)
    optimizer = ours.RMSprop(params, 0.01, 0.9, 1e-7, num_threads=3, **settings)
    for _ in range(4):
        give_gradients(params)
        native.step([p.grad.numpy() for p in params])
        optimizer.step()
    for p, w in zip(params, arrays, strict=True):
        assert p.detach().numpy().tobytes() == w.tobytes()
    for entry, expected in zip(optimizer.state.values(), native.state.values(), strict=True):
        assert int(entry["step"]) == expected["step"] == 4
        for name in expected.keys() - {"step"}:
            assert entry[name].numpy().tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_in_pytorchs_operations_is_the_kernels(seed):
    """With all settings, on what the kernel could take as well."""
    rng = np.random.default_rng(seed)
    settings = {name: choices[rng.integers(2)] for name, choices in OWN.items()}
    settings["nesterov"] &= settings["momentum"] > 0
    dtype = [torch.float64, torch.complex128][seed % 2]
    a, b = twins(ours.RMSprop, ours.RMSprop, (5, 4), dtype=dtype, alpha=0.9, eps=1e-3, **settings)
    for _ in range(10):
        give_gradients(params_of(a), params_of(b))
        a.step()
        for p in params_of(b):
            entry = b._state_of(p, b.param_groups[0])
            entry["step"] += 1
            with torch.no_grad():
                torch_tensors.update(p, p.grad, entry, ours.read_settings(b.param_groups[0])[0])
    assert_close(a, b, 1e-10)


def test_tf_like_is_stable_baselines_and_timms():
    for dialect, extra in (
        (rmsfast.dialects.sb3(lr=0.01), {}),
        (
            rmsfast.dialects.timm(lr=0.01, momentum=0.9),
            {"alpha": 0.9, "eps": 1e-10, "lr_in_momentum": True, "momentum": 0.9},
        ),
    ):
        params = parameters((5, 3))
        arrays = [p.detach().numpy().copy() for p in params]
        native = rmsfast.RMSProp(arrays, **dialect)
        optimizer = ours.RMSpropTFLike(params, lr=0.01, **extra)
        for _ in range(5):
            give_gradients(params)
            native.step([p.grad.numpy() for p in params])
            optimizer.step()
        assert params[0].detach().numpy().tobytes() == arrays[0].tobytes()
    assert ours.RMSpropTFLike(parameters(1), initial_square_avg=0.5).defaults["initial_square_avg"] == 0.5
    with pytest.raises(TypeError, match="no_such"):
        ours.RMSpropTFLike(parameters(1), no_such=1)


# ---- State that moves ----


@pytest.mark.parametrize("settings", PLAIN, ids=str)
@pytest.mark.parametrize("through_file", [False, True])
def test_state_moves_to_pytorch_and_back_in_the_middle_of_a_run(settings, through_file):
    a, b = twins(ours.RMSprop, Theirs, (4, 3), (5,), eps=1e-3, **settings)
    step_both(a, b, 5)
    mine, theirs = a.state_dict(), b.state_dict()
    if through_file:
        for state in (mine, theirs):
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state.update(torch.load(file, weights_only=True))
    a.load_state_dict(copy.deepcopy(theirs))
    b.load_state_dict(copy.deepcopy(mine))
    step_both(a, b, 5)
    assert_close(a, b, 1e-11)
    assert is_native(a)


@pytest.mark.parametrize("names", [False, pytest.param(True, marks=needs_names)])
def test_state_moves_to_the_native_optimizer_and_back(names):
    settings = {"momentum": 0.9, "centered": True, "eps_inside_sqrt": True, "weight_decay": 0.1}
    params = parameters((4, 3), (5,))
    optimizer = ours.RMSprop(zip("ab", params, strict=True) if names else params, alpha=0.9, **settings)
    arrays = [p.detach().numpy().copy() for p in params]
    native = rmsfast.RMSProp(dict(zip("ab", arrays, strict=True)) if names else arrays)
    for _ in range(3):
        give_gradients(params)
        optimizer.step()
    for w, p in zip(arrays, params, strict=True):
        w[...] = p.detach()
    native.load_state_dict(ours.to_native(optimizer.state_dict()))
    grads = [torch.randn_like(p) for p in params]
    by_name = dict(zip("ab", [g.numpy() for g in grads], strict=True))
    native.step(by_name if names else list(by_name.values()))

    back = ours.RMSprop(zip("ab", params, strict=True) if names else params)
    back.load_state_dict(ours.from_native(native.state_dict()))
    theirs = Theirs(zip("ab", params, strict=True) if names else params)
    theirs.load_state_dict(ours.from_native(native.state_dict()))
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()
    for p, w in zip(params, arrays, strict=True):
        assert p.detach().numpy().tobytes() == w.tobytes()
    for p in params:
        for name in ("step", "square_avg", "grad_avg", "momentum_buffer"):
            assert torch.equal(back.state[p][name], optimizer.state[p][name])
            assert torch.equal(theirs.state[p][name], optimizer.state[p][name])
    for name in ("lr", "alpha", "eps", *settings):
        assert back.param_groups[0][name] == optimizer.param_groups[0][name]


def test_what_cannot_move_is_refused():
    optimizer = ours.RMSprop(parameters(3))
    with pytest.raises(ValueError, match=r"state\[0\]: none yet"):
        ours.to_native(optimizer.state_dict())
    give_gradients(params_of(optimizer))
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][0]["square_avg"] = torch.zeros(3, dtype=torch.float8_e5m2)
    with pytest.raises(TypeError, match=r"state\[0\]\['square_avg'\]: torch.float8_e5m2"):
        ours.to_native(state_dict)
    for name, schedule in ("lr", lambda step: 0.1), ("beta", lambda step: 0.9), ("lr", rmsfast.schedules.linear(1, 9)):
        native = rmsfast.RMSProp(np.ones(3), **{name: schedule})
        with pytest.raises(ValueError, match=rf"param_groups\[0\]\['{name}'\]: a schedule, expected a number"):
            ours.from_native(native.state_dict())


@pytest.mark.parametrize(
    "settings", [{"clip_norm": 2.0}, {"clip_value": 0.5, "nonfinite": "skip"}, {"clip_weights": 0.01}]
)
def test_settings_that_pytorch_lacks_move_in_both_directions(settings):
    native = rmsfast.RMSProp(np.ones(3), **settings)
    optimizer = ours.RMSprop(parameters(3))
    optimizer.load_state_dict(ours.from_native(native.state_dict()))
    assert {name: optimizer.param_groups[0][name] for name in settings} == settings
    give_gradients(params_of(optimizer))
    optimizer.step()
    back = ours.to_native(optimizer.state_dict())
    assert {name: back["param_groups"][0][name] for name in settings} == settings


def test_a_run_of_an_old_or_of_a_gpus_optimizer_is_taken_over():
    a, b = twins(ours.RMSprop, Theirs, (3,))
    step_both(a, b)
    state = copy.deepcopy(b.state_dict())
    state["state"][0]["step"] = 1  # a number, as in old versions
    state["param_groups"][0]["capturable"] = True
    del state["param_groups"][0]["maximize"]
    a.load_state_dict(state)
    assert a.param_groups[0]["capturable"] is False
    step_both(a, b)
    assert_close(a, b)
    assert a.state[params_of(a)[0]]["step"].item() == 2


def test_state_that_lies_otherwise_than_its_parameter_is_laid_out_anew(looking):
    p = torch.nn.Parameter(torch.randn(4, 3, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last))
    q = torch.nn.Parameter(p.detach().clone())
    a, b = ours.RMSprop([p], momentum=0.9), Theirs([q], momentum=0.9)
    step_both(a, b)
    for name in ("square_avg", "momentum_buffer"):
        a.state[p][name] = a.state[p][name].contiguous()
    step_both(a, b, 3)
    assert_close(a, b)
    assert a.state[p]["square_avg"].stride() == p.stride()
    assert is_native(a)


# ---- Every kind of tensor ----


def layouts():
    yield "transposed", torch.randn(5, 7, dtype=torch.float64).t()
    yield "channels last", torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    yield "permuted", torch.randn(3, 1, 4, 2, dtype=torch.float64).permute(2, 0, 3, 1)
    yield "zero-sized", torch.randn(0, 3, dtype=torch.float64)
    yield "scalar", torch.randn((), dtype=torch.float64)
    yield "complex", torch.randn(4, 3, dtype=torch.complex128)
    yield "inside a larger one", torch.randn(10, 6, dtype=torch.float64)[2:7]
    yield "float32", torch.randn(4, 3)


def gradients(p):
    def make(*shape):
        return torch.randn(shape, dtype=p.dtype)

    yield "alike", torch.empty_like(p).copy_(make(*p.shape))
    yield "C order", make(*p.shape)
    yield "expanded", make(*p.shape[:-1], 1).expand(p.shape) if p.ndim else make()
    yield "all from one", make(*[1] * p.ndim).expand(p.shape)
    yield "reversed axes", make(*p.shape[::-1]).permute(tuple(reversed(range(p.ndim))))
    yield "strided", make(*p.shape, 2)[..., 1]
    if p.is_complex():
        yield "conjugate", make(*p.shape).conj()
    else:
        yield "negative", torch.randn((*p.shape,), dtype=torch.complex128).conj().imag.to(p.dtype)
        yield "lazily negative", torch._neg_view(make(*p.shape, 2)[..., 0])


KINDS = [pytest.param(p, g, id=f"{name}, {kind}") for name, p in layouts() for kind, g in gradients(p)]


@pytest.mark.parametrize(("value", "grad"), KINDS)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "eps": 1e-3}], ids=["plain", "both"])
def test_layouts_of_parameters_and_gradients(value, grad, settings, looking, short_stretches):
    p, q = torch.nn.Parameter(value.detach().clone()), torch.nn.Parameter(value.detach().clone())
    a, b = ours.RMSprop([p], num_threads=2, **settings), Theirs([q], **settings)
    for _ in range(3):
        p.grad, q.grad = grad, grad.resolve_conj()
        a.step()
        b.step()
    assert_close(a, b, 1e-6 if p.dtype == torch.float32 else 1e-11)
    assert is_native(a)
    assert torch.equal(a.state[p]["step"], b.state[q]["step"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_half_precision_is_the_kernels(dtype, settings):
    """tests/test_torch_formats.py has its bits. PyTorch's own rounds the state, too."""
    a, b = twins(ours.RMSprop, Theirs, (6, 5), (3,), dtype=dtype, eps=1e-2, foreach=False, **settings)
    step_both(a, b, 5)
    assert_close(a, b, 0.05)
    assert is_native(a)


def test_kinds_are_told_apart_for_each_parameter():
    negative = torch.nn.Parameter(torch._neg_view(parameters((5,), dtype=torch.bfloat16)[0].detach()))
    params = [*parameters((3,), (4, 2)), negative, *parameters((2,))]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    a, b = ours.RMSprop(params, momentum=0.9), Theirs(copies, momentum=0.9)
    step_both(a, b, 4)
    assert_close(a, b, 1e-2)
    assert [p.dtype for _, p, *_ in a._others] == [torch.bfloat16]
    for p, q in zip(params, copies, strict=True):
        assert a.state[p]["step"].item() == b.state[q]["step"].item() == 4
    params[2].data = params[2].data.double()  # from here on it is one for the kernel
    for name in ("square_avg", "momentum_buffer"):
        a.state[params[2]][name] = a.state[params[2]][name].double()
    for p in params:
        p.grad = torch.randn_like(p)
    a.step()
    a.step()
    assert is_native(a)


def test_other_devices():
    a = ours.RMSprop([torch.nn.Parameter(torch.empty(3, device="meta")), *parameters((2,))])
    for p in params_of(a):
        p.grad = torch.ones_like(p)
    before = params_of(a)[1].detach().clone()
    a.step()
    assert a.state[params_of(a)[0]]["square_avg"].device.type == "meta"
    assert (params_of(a)[1] < before).all()


class Wrapped(torch.Tensor):
    """A subclass of the kind that keeps its elements elsewhere."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = lambda x: x.inner if isinstance(x, Wrapped) else x  # noqa: E731
        out = func(*torch.utils._pytree.tree_map(unwrap, args), **torch.utils._pytree.tree_map(unwrap, kwargs or {}))
        inplace = args and isinstance(args[0], Wrapped) and func._schema.name.endswith("_")
        return args[0] if inplace else Wrapped(out) if isinstance(out, torch.Tensor) else out


def test_subclasses_with_elements_elsewhere_go_through_pytorchs_operations():
    inner = torch.randn(3, dtype=torch.float64)
    p = torch.nn.Parameter(Wrapped(inner.clone()))
    q = torch.nn.Parameter(inner.clone())
    a, b = ours.RMSprop([p]), Theirs([q])
    grad = torch.randn(3, dtype=torch.float64)
    p.grad, q.grad = Wrapped(grad), grad
    a.step()
    b.step()
    torch.testing.assert_close(p.inner if isinstance(p, Wrapped) else p.data.inner, q.detach())


class Named(torch.nn.Parameter):
    """A subclass with a name and nothing else."""


def test_subclasses_that_are_tensors_are_the_kernels():
    p = Named(torch.randn(3, dtype=torch.float64))
    q = torch.nn.Parameter(p.detach().clone())
    a, b = ours.RMSprop([p]), Theirs([q])
    step_both(a, b, 2)
    assert_close(a, b)
    assert is_native(a)


# ---- Sparse gradients ----


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_an_embeddings_sparse_gradient_updates_its_rows_alone(settings, looking):
    embedding = torch.nn.Embedding(50, 4, sparse=True).double()
    optimizer = ours.RMSprop(embedding.parameters(), **settings)
    w = embedding.weight.detach().numpy().copy()
    native = rmsfast.RMSProp(w, lr=0.01, beta=0.99, **settings)
    for _ in range(4):
        rows = torch.randint(50, (8,))
        optimizer.zero_grad()
        (embedding(rows) * torch.randn(8, 4, dtype=torch.float64)).sum().backward()
        grad = embedding.weight.grad
        native.step(rmsfast.Rows(grad._indices()[0].numpy(), grad._values().numpy()))
        optimizer.step()
        assert embedding.weight.detach().numpy().tobytes() == w.tobytes()
    assert is_native(optimizer)
    v = optimizer.state[embedding.weight]["square_avg"]
    assert v.numpy().tobytes() == native.state[0]["square_avg"].tobytes()
    assert (v == 0).all(1).any(), "some rows never had a gradient"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sparse_gradients_that_are_not_rows(dtype):
    """Elements in two axes; a half-precision parameter; a parameter in another order of axes."""
    dense = torch.zeros(6, 5, dtype=dtype)
    dense[1, 2], dense[4, 0] = 2.0, -3.0
    for p, grad in (
        (torch.nn.Parameter(torch.ones(6, 5, dtype=dtype)), dense.to_sparse()),
        (torch.nn.Parameter(torch.ones(6, 5, dtype=dtype)), dense.to_sparse(1)),
        (torch.nn.Parameter(torch.ones(5, 6, dtype=dtype).t()), dense.to_sparse(1)),
    ):
        q = torch.nn.Parameter(torch.ones(6, 5, dtype=dtype))
        a, b = ours.RMSprop([p], momentum=0.9), Theirs([q], momentum=0.9)
        q.grad = dense.clone()
        p.grad = grad
        for _ in range(2):
            a.step()
            b.step()
        assert_close(a, b, 1e-12 if dtype == torch.float64 else 1e-2)
        assert a.state[p]["step"].item() == 2


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (3, 1, 4), (7,)])
def test_rows_of_odd_shapes(shape, looking):
    """Where an axis has one element, its stride may be anything: (1, 1) for a row of five."""
    for strides in torch.empty(shape).stride(), (1,) * len(shape):
        p = torch.nn.Parameter(torch.empty_strided(shape, strides, dtype=torch.float64).fill_(1.0).contiguous())
        if torch.empty_strided(shape, strides).is_contiguous():
            p = torch.nn.Parameter(torch.empty_strided(shape, strides, dtype=torch.float64).fill_(1.0))
        q = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
        a, b = ours.RMSprop([p]), Theirs([q])
        q.grad = torch.randn(shape, dtype=torch.float64)
        p.grad = q.grad.to_sparse(1)
        for _ in range(2):
            a.step()
            b.step()
        assert_close(a, b)


def test_sparse_and_dense_gradients_take_turns():
    table, bias = parameters((20, 3), (3,))
    optimizer = ours.RMSprop([table, bias])
    for k in range(4):
        bias.grad = torch.ones_like(bias)
        dense = torch.zeros(20, 3, dtype=torch.float64)
        dense[k] = 1.0
        table.grad = dense.to_sparse(1) if k % 2 else dense
        before = table.detach().clone()
        optimizer.step()
        assert (table[k] != before[k]).all()
        assert torch.equal(table[10:], before[10:])
    assert optimizer.state[bias]["step"].item() == 4


# ---- What else happens to parameters ----


def test_a_stale_saved_tensor_is_noticed_in_backward():
    for cls in (ours.RMSprop, Theirs):
        (w,) = parameters((3,))
        optimizer = cls([w])
        w.grad = torch.ones_like(w)
        loss = (w * w).sum()
        version = w._version
        optimizer.step()
        assert w._version == version + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_versions_of_parameters_without_a_gradient_stay():
    params = parameters((3,), (2,))
    optimizer = ours.RMSprop(params)
    for _ in range(2):
        give_gradients(params)
        params[0].grad = None
        versions = [p._version for p in params]
        optimizer.step()
        assert [p._version - old for p, old in zip(params, versions, strict=True)] == [0, 1]


def moved_data(p, entry):
    p.data = p.data.clone()


def other_dtype(p, entry):
    p.data = p.data.float()
    p.grad = None
    entry.clear()


def shared(p, entry):
    p.data.share_memory_()


def shared_state(p, entry):
    entry["square_avg"].share_memory_()


def shared_step(p, entry):
    entry["step"].share_memory_()


def replaced_state(p, entry):
    entry["square_avg"] = entry["square_avg"].clone()


def moved_state(p, entry):
    entry["square_avg"].data = entry["square_avg"].data.clone()


def step_of_another_dtype(p, entry):
    entry["step"] = entry["step"].double()


def resized_storage(p, entry):
    values = p.data.clone()
    storage = p.data.untyped_storage()
    size = storage.size()
    storage.resize_(0)
    storage.resize_(size)
    p.data.copy_(values)


CHANGES = [
    moved_data,
    other_dtype,
    shared,
    shared_state,
    shared_step,
    replaced_state,
    moved_state,
    step_of_another_dtype,
]


@pytest.mark.parametrize("change", [*CHANGES, resized_storage], ids=lambda change: change.__name__)
def test_parameters_and_state_that_move_between_steps(change, looking):
    a, b = twins(ours.RMSprop, Theirs, (300,), (20,))
    step_both(a, b, 2)
    for optimizer in (a, b):
        p = params_of(optimizer)[0]
        change(p, optimizer.state[p])
    step_both(a, b, 3)
    assert_close(a, b, 1e-6 if change is other_dtype else 1e-12)
    assert is_native(a)
    for p, q in zip(params_of(a), params_of(b), strict=True):
        assert a.state[p]["step"].item() == b.state[q]["step"].item()
        torch.testing.assert_close(a.state[p]["square_avg"], b.state[q]["square_avg"])


def test_state_and_groups_that_are_exchanged():
    a, b = twins(ours.RMSprop, Theirs, (3,), (4,))
    step_both(a, b, 2)
    for optimizer in (a, b):
        optimizer.state.clear()
    step_both(a, b, 2)
    assert_close(a, b)
    for optimizer in (a, b):
        first = params_of(optimizer)[0]
        optimizer.param_groups[0]["params"].reverse()
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
        del optimizer.state[first]
    step_both(a, b, 2)
    assert_close(a, b)


def test_a_parameter_without_memory_is_an_error_and_nothing_changes():
    a, b = parameters((3,), (4,))
    optimizer = ours.RMSprop([a, b])
    give_gradients([a, b])
    optimizer.step()
    before = a.detach().clone()
    b.data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert torch.equal(a, before)
    assert optimizer.state[a]["step"].item() == 1


def test_a_gradient_that_was_resized_is_an_error_and_nothing_changes():
    a, b = parameters((3,), (4,))
    optimizer = ours.RMSprop([a, b])
    give_gradients([a, b])
    optimizer.step()
    before = a.detach().clone()
    b.grad.resize_(2)
    with pytest.raises(RuntimeError, match=r"a gradient of shape \(2,\), expected \(4,\), as its parameter"):
        optimizer.step()
    assert torch.equal(a, before)


def test_a_gradient_may_share_memory_with_its_parameter():
    a, b = twins(ours.RMSprop, Theirs, (5,), foreach=False)
    for optimizer in (a, b):
        p = params_of(optimizer)[0]
        p.grad = p.detach()
        optimizer.step()
        optimizer.step()
    assert_close(a, b)


def test_parameters_that_share_memory_are_updated_one_after_the_other():
    pair = []
    for cls in (ours.RMSprop, Theirs):
        base = torch.linspace(1, 2, 10, dtype=torch.float64)
        params = [torch.nn.Parameter(base[:6]), torch.nn.Parameter(base[4:]), torch.nn.Parameter(base[0:1])]
        pair.append(cls(params, foreach=False))
    step_both(*pair, 3)
    assert_close(*pair)


def test_a_parameter_given_twice_is_updated_twice():
    pair = []
    for cls in (ours.RMSprop, Theirs):
        p = torch.nn.Parameter(torch.linspace(1, 2, 5, dtype=torch.float64))
        pair.append(cls([p, p], foreach=False))
        p.grad = torch.ones_like(p)
    for optimizer in pair:
        optimizer.step()
        optimizer.step()
    assert_close(*pair)
    assert all(params_of(o)[0].grad is not None and o.state[params_of(o)[0]]["step"].item() == 4 for o in pair)


def test_many_threads_share_an_optimizer():
    params = parameters((2000,), (30,))
    optimizer = ours.RMSprop(params, alpha=1.0, lr=0.5)
    give_gradients(params)
    optimizer.step()
    threads = [threading.Thread(target=lambda: [optimizer.step() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [optimizer.state[p]["step"].item() for p in params] == [201, 201]


def test_a_step_from_inside_of_a_closure_or_hook():
    optimizer = ours.RMSprop(parameters((3,)))
    give_gradients(params_of(optimizer))
    optimizer.step(lambda: optimizer.step())
    assert optimizer.state[params_of(optimizer)[0]]["step"].item() == 2


def test_nothing_is_kept_of_gradients_and_optimizers():
    import gc
    import weakref

    params = parameters((3,))
    optimizer = ours.RMSprop(params)
    give_gradients(params)
    optimizer.step()
    grad = weakref.ref(params[0].grad)
    params[0].grad = None
    assert grad() is None
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


# ---- Beside the rest of PyTorch ----


def train(cls, around, steps=12):
    """Train a small model; `around` makes the step from optimizer and loss."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    optimizer = cls(model.parameters(), lr=0.02, momentum=0.5)
    x = torch.randn(32, 6, dtype=torch.float64)
    step = around(optimizer, model)
    for _ in range(steps):
        optimizer.zero_grad()
        step(model(x).square().mean())
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def with_grad_scaler(optimizer, model):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    def step(loss):
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def with_clipping(optimizer, model):
    def step(loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return step


def with_schedulers(optimizer, model):
    first = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=5)
    second = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[5])
    cyclic = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, step_size_up=3)  # cycles the momentum as well

    def step(loss):
        loss.backward()
        optimizer.step()
        both.step()
        cyclic.step()

    return step


def with_averages(optimizer, model):
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    rate = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)

    def step(loss):
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        rate.step()
        step.average = average

    return step


def with_post_hook(optimizer, model):
    def halve(optimizer, args, kwargs):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)

    optimizer.register_step_post_hook(halve)

    def step(loss):
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("around", [with_grad_scaler, with_clipping, with_schedulers, with_averages, with_post_hook])
def test_beside_the_rest_of_pytorch(around):
    torch.testing.assert_close(train(ours.RMSprop, around), train(Theirs, around), rtol=1e-10, atol=1e-12)


def test_the_grad_scaler_skips_steps_with_infinities():
    (w,) = parameters((3,))
    optimizer = ours.RMSprop([w])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, steps in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale((factor * w).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state[w]["step"].item() == steps
    assert torch.isfinite(w).all()


def test_a_compiled_model():
    def compiled(optimizer, model):
        def step(loss):
            loss.backward()
            optimizer.step()

        forward = torch.compile(model, backend="aot_eager")
        model.forward = lambda x: forward._orig_mod.__class__.forward(model, x)
        return step

    torch.manual_seed(0)
    models = [torch.nn.Linear(4, 2).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 4, dtype=torch.float64)
    for model, cls in zip(models, (ours.RMSprop, Theirs), strict=True):
        fast = torch.compile(model, backend="aot_eager")
        optimizer = cls(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            fast(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(*[m.parameters() for m in models], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=0)


def test_pytorchs_number_of_threads_is_followed(monkeypatch):
    asked = []
    optimizer = ours.RMSprop(parameters((3,)))
    own = ours.RMSprop(parameters((3,)), num_threads=5)
    for o in (optimizer, own):
        give_gradients(params_of(o))
        o.step()

        class Watched:
            def step(self, groups, state, threads, grads=None):
                asked.append(threads)
                return True

        o._alone = Watched()
    old = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            optimizer.step()
            own.step()
    finally:
        torch.set_num_threads(old)
    assert asked == [1, 5, 2, 5]


# ---- What a tensor's memory can be, and what it cannot ----


@pytest.mark.parametrize("view", [lambda x: x.mH, lambda x: x.conj(), torch._neg_view], ids=["mH", "conj", "negative"])
@pytest.mark.parametrize("settings", PLAIN)
def test_a_parameter_that_is_a_conjugate_or_negative_view(view, settings, looking):
    memory = torch.randn(4, 3, dtype=torch.complex128)
    p, q = torch.nn.Parameter(view(memory)), torch.nn.Parameter(view(memory).resolve_conj().resolve_neg().clone())
    a, b = ours.RMSprop([p], **settings), Theirs([q], **settings)
    for _ in range(3):
        q.grad = torch.randn(q.shape, dtype=q.dtype)
        p.grad = q.grad.clone()
        a.step()
        b.step()
    assert (p - q).abs().max() < 1e-9
    assert torch.equal(p, view(memory)), "it still is a view of the same memory"


def test_a_real_parameter_that_is_a_negative_view(looking):
    p, q = torch.nn.Parameter(torch._neg_view(-torch.ones(5))), torch.nn.Parameter(torch.ones(5))
    a, b = ours.RMSprop([p]), ours.RMSprop([q])
    for _ in range(3):
        give_gradients([p], [q])
        a.step()
        b.step()
    assert (p - q).abs().max() < 1e-6


def test_a_dense_real_gradient_that_stands_for_its_negative(looking):
    """Also once the plan exists, and where the memory is that of the gradient before."""
    a, b = twins(ours.RMSprop, Theirs, (6,), dtype=torch.float32)
    (p,), (q,) = params_of(a), params_of(b)
    for step in range(6):
        if step % 3 == 0:
            q.grad = torch.randn(6)
            p.grad = q.grad.clone()
        elif step % 3 == 1:
            p.grad = torch._neg_view(p.grad)
            q.grad = -q.grad
        else:
            p.grad = torch.randn(6, dtype=torch.complex64).conj().imag.as_strided((6,), (1,))
            q.grad = p.grad.resolve_neg().clone()
        a.step()
        b.step()
        assert_close(a, b, 1e-5)


def test_another_gradient_at_the_address_of_the_one_before(looking):
    """Gradients that are made anew for each step may lie, as objects, where former ones did."""
    a, b = twins(ours.RMSprop, Theirs, (3,), (4,), dtype=torch.float32)
    memory = [torch.randn(3), torch.randn(4)]
    for step in range(30):
        for p, q, values in zip(params_of(a), params_of(b), memory, strict=True):
            p.grad = q.grad = None
            p.grad = torch._neg_view(values) if step % 2 else values.clone()
            q.grad = p.grad.resolve_neg().clone()
        a.step()
        b.step()
    assert_close(a, b, 1e-5)


def test_a_sparse_gradient_whose_values_are_the_parameters_memory(looking):
    a, b = twins(ours.RMSprop, ours.RMSprop, (4, 3))
    (p,), (q,) = params_of(a), params_of(b)
    rows = torch.tensor([[3, 0, 1, 2]])
    for _ in range(3):
        p.grad = torch.sparse_coo_tensor(rows, p.detach(), (4, 3))
        q.grad = torch.sparse_coo_tensor(rows, q.detach().clone(), (4, 3))
        a.step()
        b.step()
        assert torch.equal(p, q)


@pytest.mark.parametrize("damage", ["gradient", "parameter", "state"])
def test_nothing_moves_if_a_parameter_that_is_not_for_the_kernel_is_refused(damage):
    w, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = ours.RMSprop([w, half])
    give_gradients([w])
    give_gradients([half])
    optimizer.step()
    before = w.detach().clone()
    damaged = {"gradient": half.grad, "parameter": half, "state": optimizer.state[half]["square_avg"]}[damage]
    damaged.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="no memory, because its storage was resized"):
        optimizer.step()
    assert torch.equal(w, before)
    assert optimizer.state[w]["step"].item() == 1


@pytest.mark.parametrize("kind", ["square_avg", "step"])
def test_state_made_under_inference_mode_is_refused_as_pytorch_does(kind):
    for cls in Theirs, ours.RMSprop:
        (p,) = parameters((3,))
        give_gradients([p])
        optimizer = cls([p])
        optimizer.step()
        with torch.inference_mode():
            optimizer.state[p][kind] = optimizer.state[p][kind].clone()
        before = p.detach().clone()
        with pytest.raises(RuntimeError, match="[Ii]nference"):
            optimizer.step()
        assert torch.equal(p, before)


def test_under_a_fake_tensor_mode_real_weights_stay():
    from torch._subclasses.fake_tensor import FakeTensorMode

    (p,) = parameters((3,))
    optimizer = ours.RMSprop([p])
    give_gradients([p])
    optimizer.step()
    before = p.detach().clone()
    with FakeTensorMode(), pytest.raises(Exception, match="[Ff]ake"):
        optimizer.step()
    assert torch.equal(p, before)
    optimizer.step()
    assert not torch.equal(p, before)
    assert is_native(optimizer)


def test_a_number_in_an_array_is_read_at_every_step():
    rate = np.array(0.1)
    (p,) = parameters((3,))
    optimizer = ours.RMSprop([p], lr=rate)
    give_gradients([p])
    optimizer.step()
    before = p.detach().clone()
    rate[...] = 0
    optimizer.step()
    assert torch.equal(p, before)


def test_state_can_be_swapped():
    (p,) = parameters((3,))
    optimizer = ours.RMSprop([p])
    give_gradients([p])
    optimizer.step()
    torch.utils.swap_tensors(optimizer.state[p]["square_avg"], torch.full((3,), 4.0, dtype=p.dtype))
    optimizer.step()
    assert (optimizer.state[p]["square_avg"] > 3).all()


def test_tensors_with_more_axes_than_numpy_has(looking):
    a, b = twins(ours.RMSprop, Theirs, (1,) * 100, (1,) * 65)
    for p, q in zip(params_of(a), params_of(b), strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    for _ in range(2):
        a.step()
        b.step()
    assert_close(a, b)


def test_the_number_of_threads_is_checked_when_it_is_set():
    optimizer = ours.RMSprop(parameters((3,)))
    for value in (-1, -2, 0, 1025, 1.5, "2", True):
        with pytest.raises((TypeError, ValueError), match="num_threads: .*, expected an integer from 1 to 1024"):
            optimizer.num_threads = value
        assert optimizer.num_threads is None
    optimizer.num_threads = 2
    assert pickle.loads(pickle.dumps(optimizer)).num_threads == copy.deepcopy(optimizer).num_threads == 2


def test_a_group_with_settings_that_do_not_go_together_is_refused_at_once():
    optimizer = ours.RMSprop(parameters((3,)))
    for settings in {"nesterov": True}, {"clip_norm": 1, "clip_value": 1}, {"clip_norm": -1}, {"nonfinite": "no"}:
        with pytest.raises(ValueError, match=next(iter(settings))):
            optimizer.add_param_group({"params": parameters((2,)), **settings})
    assert len(optimizer.param_groups) == 1


# ---- Clipping, and nonfinite gradients ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize(
    "clip", [{"clip_value": 0.3}, {"clip_norm": 0.5}, {"clip_global_norm": 0.7}, {"clip_weights": 0.2}]
)
def test_clipping_has_the_bits_of_the_native_optimizer(clip, dtype, looking, short_stretches):
    shapes = [(5, 3), (2000,), (), (0, 2)]
    params = parameters(*shapes, dtype=dtype)
    arrays = [p.detach().clone().numpy() for p in params]
    optimizer, native = ours.RMSprop(params, lr=0.01, alpha=0.9, **clip), rmsfast.RMSProp(arrays, lr=0.01, **clip)
    for _ in range(3):
        give_gradients(params)
        optimizer.step()
        native.step([p.grad.numpy() for p in params])
    assert is_native(optimizer)
    for p, w in zip(params, arrays, strict=True):
        assert p.detach().numpy().tobytes() == w.tobytes()


def test_one_step_clips_as_pytorchs_function_and_step_do():
    a, b = twins(functools.partial(ours.RMSprop, clip_global_norm=0.5), Theirs, (30, 20), (20,))
    for _ in range(5):
        give_gradients(params_of(a), params_of(b))
        kept = [p.grad.clone() for p in params_of(a)]
        torch.nn.utils.clip_grad_norm_(params_of(b), 0.5)
        a.step()
        b.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params_of(a), kept, strict=True))
    assert_close(a, b, 1e-5)


@pytest.mark.parametrize(
    "clip", [{"clip_value": 0.3}, {"clip_norm": 0.5}, {"clip_global_norm": 0.7}, {"clip_weights": 0.2}]
)
def test_parameters_that_are_not_for_the_kernel_take_part_in_clipping(clip):
    """A view that stands for its negative, beside a bfloat16 parameter; the norm is that of all."""
    exact = parameters((40,), (7,), (6,))
    mixed = [
        torch.nn.Parameter(exact[0].detach().clone()),
        torch.nn.Parameter(torch._neg_view(-exact[1].detach())),
        torch.nn.Parameter(exact[2].detach().to(torch.bfloat16)),
    ]
    a, b = ours.RMSprop(mixed, **clip), ours.RMSprop(exact, **clip)
    for _ in range(3):
        for p, q in zip(mixed, exact, strict=True):
            p.grad = torch.randn(q.shape).to(p.dtype)
            q.grad = p.grad.to(q.dtype)
        a.step()
        b.step()
    assert [p.dtype for _, p, *_ in a._others] == [torch.float64]
    for p, q in zip(mixed[:2], exact[:2], strict=True):
        assert (p - q).abs().max() < 1e-9
    assert (mixed[2].double() - exact[2]).abs().max() < 0.05


@pytest.mark.parametrize("bad", [0, 1])
def test_nonfinite_gradients_raise_or_are_skipped_by_all_parameters(bad):
    """Those of the kernel and others: whichever has the number, none moves."""
    w, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch._neg_view(-torch.ones(4)))
    optimizer = ours.RMSprop([w, half], nonfinite="raise")
    give_gradients([w])
    give_gradients([half])
    optimizer.step()
    before = [p.detach().clone() for p in (w, half)]
    (w, half)[bad].grad[1] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"grads\[{bad}\]: 1 .*numbers are infinite or NaN"):
        optimizer.step()
    optimizer.param_groups[0]["nonfinite"] = "skip"
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert [torch.equal(p, q) for p, q in zip((w, half), before, strict=True)] == [True, True]
    assert [optimizer.state[p]["step"].item() for p in (w, half)] == [1, 1]
    (w, half)[bad].grad[1] = 1.0
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in (w, half)] == [2, 2]
    assert copy.deepcopy(optimizer).skipped_steps == 1


def test_sparse_gradients_are_measured_by_their_rows():
    a, b = twins(functools.partial(ours.RMSprop, clip_norm=0.1), functools.partial(ours.RMSprop), (10, 4))
    (p,), (q,) = params_of(a), params_of(b)
    values = torch.randn(2, 4, dtype=torch.float64)
    p.grad = torch.sparse_coo_tensor(torch.tensor([[7, 2]]), values, (10, 4))
    q.grad = torch.sparse_coo_tensor(torch.tensor([[7, 2]]), values * (0.1 / values.norm()), (10, 4))
    a.step()
    b.step()
    assert_close(a, b)


def test_a_new_plan_knows_what_the_one_before_has_learned():
    (p,) = parameters((400, 400))
    optimizer = ours.RMSprop([p], num_threads=2)
    give_gradients([p])
    for _ in range(4):
        optimizer.step()
    before, plan = optimizer._plan._learned(), optimizer._plan
    assert before or not rmsfast.config()["openmp"] or rmsfast.config()["num_threads"] == 1
    optimizer.param_groups[0]["momentum"] = 0.9  # needs a new plan, whose first step touches new memory
    optimizer.step()
    assert optimizer._plan is not plan
    assert optimizer._plan._learned() == before


# ---- Refused steps, and settings that change around them ----


def test_a_parameter_that_is_not_for_the_kernel_moves_where_its_group_does_not_clip():
    """Though another group asks for norms, or its own for nonfinite numbers."""
    for settings in {"nonfinite": "skip"}, {}:
        w, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        w.grad, half.grad = torch.ones(3), torch.ones(3, dtype=torch.bfloat16)
        optimizer = ours.RMSprop([{"params": [w], "clip_norm": 0.1}, {"params": [half], **settings}])
        for _ in range(2):
            optimizer.step()
        assert (half < -0.05).all()
        assert (optimizer.state[half]["square_avg"] > 0).all()


def test_settings_of_one_group_are_not_lost_when_those_of_another_are_refused():
    a, b = parameters((3,), (3,))
    optimizer = ours.RMSprop([{"params": [a]}, {"params": [b]}])
    give_gradients([a, b])
    for _ in range(2):
        optimizer.step()
    old = optimizer.param_groups[1]["lr"]
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.0, None
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = old
    before = a.detach().clone()
    optimizer.step()
    assert torch.equal(a, before)


@pytest.mark.parametrize("name", ["square_avg", "momentum_buffer"])
def test_state_of_another_shape_is_refused_before_anything_moves(name):
    w, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    w.grad, half.grad = torch.ones(3), torch.ones(3, dtype=torch.bfloat16)
    optimizer = ours.RMSprop([w, half], momentum=0.9)
    optimizer.step()
    optimizer.state[half][name] = torch.zeros(5, dtype=torch.bfloat16)
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match=rf"parameter 1: {name} is .* of shape \(5,\)"):
        optimizer.step()
    assert torch.equal(w, before)
    assert [optimizer.state[p]["step"].item() for p in (w, half)] == [1, 1]


def test_a_refused_first_step_leaves_no_state():
    (p,) = parameters((3,))
    optimizer = ours.RMSprop([p], nonfinite="raise")
    p.grad = torch.full((3,), float("nan"), dtype=p.dtype)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert optimizer.state_dict()["state"] == {}


def test_a_complex_gradient_that_becomes_its_conjugate_in_place(looking):
    a, b = twins(ours.RMSprop, ours.RMSprop, (4,), dtype=torch.complex128)
    (p,), (q,) = params_of(a), params_of(b)
    give_gradients([p], [q])
    for step in range(4):
        if step == 2:
            p.grad.data = p.grad.conj()
            q.grad = q.grad.conj().resolve_conj()
        a.step()
        b.step()
    assert torch.equal(p, q)


def test_a_skipped_step_and_an_unusual_gradient_do_not_cost_later_steps():
    (p,) = parameters((3,))
    optimizer = ours.RMSprop([p], nonfinite="skip")
    usual, bad = torch.ones(3, dtype=p.dtype), torch.full((3,), float("inf"), dtype=p.dtype)
    for gradient in usual, bad, usual, usual.to_sparse(1), usual, usual:
        p.grad = gradient
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.state[p]["step"].item() == 5
    assert optimizer._alone is not None


def test_norms_of_numbers_whose_squares_overflow():
    for view in (lambda x: x), (lambda x: torch._neg_view(-x)):  # the kernel's, and another's
        p = torch.nn.Parameter(view(torch.ones(4, dtype=torch.float64)))
        p.grad = torch.full((4,), 1e200, dtype=torch.float64)
        optimizer = ours.RMSprop([p], clip_norm=1.0)
        optimizer.step()
        assert (p < 0.95).all()


def test_parameters_in_another_sequence_than_a_list():
    for make in tuple, torch.nn.ParameterList:
        (p,) = parameters((3,))
        optimizer = ours.RMSprop([p])
        give_gradients([p])
        optimizer.step()
        optimizer.param_groups[0]["params"] = make([p])
        optimizer.step()
        assert optimizer.state[p]["step"].item() == 2


def test_a_parameter_of_a_class_with_a_gradient_of_its_own():
    class Own(torch.nn.Parameter):
        @property
        def grad(self):
            return torch.ones(3)

    p = Own(torch.zeros(3))
    optimizer = ours.RMSprop([p])
    for _ in range(3):
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 3


# ---- The package ----


def test_the_programs_in_docstrings():
    results = doctest.testmod(ours)
    assert results.attempted > 0
    assert results.failed == 0


def test_rmsfast_never_imports_pytorch():
    program = "import sys, rmsfast; assert 'torch' not in sys.modules and 'rmsfast.torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_without_pytorch_the_import_says_what_to_install():
    program = "import sys; sys.modules['torch'] = None\nimport rmsfast.torch"
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert "ImportError: rmsfast.torch needs PyTorch, 2.5 or newer: pip install torch" in run.stderr


# ---- Several processes ----


def run_processes(engine, world, folder):
    """Train in so many processes; return what each of them has in the end."""
    worker = Path(__file__).with_name("torch_worker.py")
    processes = [
        subprocess.Popen([sys.executable, "-P", worker, engine, str(rank), str(world), folder], stderr=subprocess.PIPE)
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("engine", ["ddp", "zero", "fsdp"])
def test_processes_train_as_one_does(engine, world, tmp_path):
    import torch_worker

    if engine == "fsdp" and not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("this PyTorch has no fully_shard")
    model, optimizer = torch_worker.one_process()
    whole = torch_worker.elements_of_state(optimizer)
    results = run_processes(engine, world, tmp_path)
    for result in results:
        for p, expected in zip(result["params"], model.parameters(), strict=True):
            torch.testing.assert_close(p, expected.detach(), rtol=1e-12, atol=1e-12)
        assert result["native"], "the kernel takes what a process has"
        assert result["elements"] == whole if engine == "ddp" else 0 < result["elements"] < whole
    if engine != "ddp":
        assert sum(result["elements"] for result in results) == whole
    if engine == "zero":
        state = results[0]["state_dict"]["state"]
        for i, p in enumerate(model.parameters()):
            for name, value in optimizer.state[p].items():
                torch.testing.assert_close(state[i][name], value, rtol=1e-10, atol=1e-12)


FORKS = """
import multiprocessing, os, sys
import torch
import rmsfast.torch
from rmsfast._core.threads import _tune

def train(steps):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(400_000))
    optimizer = rmsfast.torch.RMSprop([w], momentum=0.9)
    w.grad = torch.linspace(-1, 1, 400_000)
    for _ in range(steps):
        optimizer.step()
    return optimizer, w

class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        _, w = train(3)     # in a worker of the loader, which was forked
        return w.detach()[:4].clone()

_tune(forced=True, cores=4)
optimizer, w = train(3)
expected = w.detach()[:4].clone()
assert all(torch.equal(rows, expected.expand(4, 4)) for rows in torch.utils.data.DataLoader(Points(), 4, num_workers=2))

before = w.detach().clone()
child = os.fork()
if child == 0:
    optimizer.step()
    torch.save(w.detach(), sys.argv[1])
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
assert torch.equal(w.detach(), before), "the child has its own"
optimizer.step()
assert torch.equal(torch.load(sys.argv[1]), w.detach())
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_and_the_workers_of_a_data_loader_take_steps(tmp_path):
    program = [sys.executable, "-P", "-W", "ignore", "-c", FORKS, str(tmp_path / "child.pt")]
    run = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "done\n"


BESIDE_PYTORCH = """
import os, sys
import numpy as np
for name in sys.argv[1:]:
    __import__(name)
import rmsfast, torch
from rmsfast._core.threads import _tune

_tune(forced=True, cores=2)
torch.set_num_threads(2)
g, x = np.linspace(-1, 1, 1_000_000), torch.ones(3_000_000)
expected, v = np.ones_like(g), np.zeros_like(g)
rmsfast.reference.rmsprop_update(expected, v, g)

def both():
    w = np.ones_like(g)
    rmsfast.RMSProp(w, num_threads=2).step(g)
    assert w.tobytes() == expected.tobytes()
    assert torch.sqrt(x).sum() == len(x)

for _ in range(20):
    both()
threads = len(os.listdir("/proc/self/task"))
for _ in range(20):
    both()
assert len(os.listdir("/proc/self/task")) == threads    # neither starts more and more
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("order", [("torch", "rmsfast"), ("rmsfast", "torch"), ("torch", "rmsfast.torch")])
def test_rmsfast_and_pytorch_have_threads_in_one_process(order):
    """On one OpenMP runtime or two, whichever is imported first: the right bits, and the number of threads stays."""
    program = [sys.executable, "-P", "-c", BESIDE_PYTORCH, *order]
    run = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "done\n"
