"""Averages and limits of the parameters inside of PyTorch: bits of the native optimizer, state dicts, other tensors."""

import copy
import io
import pickle

import numpy as np
import pytest

import rmsfast

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402
from rmsfast.torch import from_native, step_in_backward, to_native  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what PyTorch says about itself
SETTINGS = {"lr": 0.05, "alpha": 0.9, "ema_decay": 0.8, "clip_weights": 1.5}
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.float16, torch.bfloat16]


def parameters(dtype=torch.float32, shapes=((37, 3), (65,), ()), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes
    ]


def train(optimizer, steps=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params_of(optimizer):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def averages_of(optimizer):
    return [optimizer.state[p]["ema"] for p in params_of(optimizer)]


def as_array(tensor):
    """The elements of a tensor, those of bfloat16 as NumPy has them."""
    tensor = tensor.detach().clone()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)
    return tensor.numpy()


def assert_equal(tensors, others):
    for a, b in zip(tensors, others, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_the_native_optimizer(dtype):
    params = parameters(dtype)
    arrays = [as_array(p) for p in params]
    optimizer = ours.RMSprop(params, **SETTINGS)
    native = rmsfast.RMSProp(arrays, lr=0.05, beta=0.9, ema_decay=0.8, clip_weights=1.5)
    for step in range(3):
        train(optimizer, seed=step)
        native.step([as_array(p.grad) for p in params])
    assert not optimizer._others
    for i, (p, w) in enumerate(zip(params, arrays, strict=True)):
        assert as_array(p).tobytes() == w.tobytes()
        average = optimizer.state[p]["ema"]
        assert average.dtype == (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
        assert average.numpy().tobytes() == native.state[i]["ema"].tobytes()
        assert not average.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("failing", [False, True])
def test_the_parameters_hold_their_averages_and_come_back(dtype, failing):
    params = parameters(dtype)
    optimizer = ours.RMSprop(params, **SETTINGS)
    train(optimizer, 3)
    with torch.no_grad():
        params[1][:2] = torch.tensor([float("nan"), -0.0])
    before = [as_array(p).tobytes() for p in params]
    try:
        with optimizer.averages():
            assert_equal([p.detach() for p in params], [a.to(dtype) for a in averages_of(optimizer)])
            assert [as_array(p).tobytes() for p in params] != before
            if failing:
                raise KeyError
    except KeyError:
        assert failing
    assert [as_array(p).tobytes() for p in params] == before
    assert all(p.requires_grad for p in params)


def test_a_run_with_evaluations_in_between_has_the_bits_of_one_without():
    a, b = (ours.RMSprop(parameters(), **SETTINGS) for _ in range(2))
    for step in range(4):
        train(a, seed=step)
        train(b, seed=step)
        with a.averages():
            pass
    assert_equal(params_of(a), params_of(b))
    assert_equal(averages_of(a), averages_of(b))


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_refused_inside(backward):
    model = torch.nn.Linear(2, 1)
    optimizer = ours.RMSprop(model.parameters(), **SETTINGS)
    if backward:
        step_in_backward(optimizer)
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for p in model.parameters():
        p.grad = None if backward else torch.ones_like(p)
    with optimizer.averages():
        average = model.weight.detach().clone()
        calls = [("averages", optimizer.averages().__enter__), ("load", lambda: optimizer.load_state_dict(saved))]
        calls += [("a copy of the parameters", lambda how=how: how(optimizer)) for how in (copy.deepcopy, pickle.dumps)]
        if backward:
            calls.append(("step in backward", lambda: model(torch.ones(3, 2)).sum().backward()))
        else:
            calls.append(("step", optimizer.step))
        for what, call in calls:
            with pytest.raises(RuntimeError, match=rf"^{what}: inside averages\(\), .* expected after it$"):
                call()
            assert torch.equal(model.weight, average)
    assert not torch.equal(model.weight, average)
    optimizer.zero_grad()
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {2}


def test_averages_without_a_setting_are_refused():
    optimizer = ours.RMSprop(parameters())
    with pytest.raises(ValueError, match="^averages: no group has an ema_decay, expected it in one at least"):
        optimizer.averages().__enter__()
    with pytest.raises(ValueError, match="^ema_decay: 1.5, expected a number from 0 to 1 or None"):
        ours.RMSprop(parameters(), ema_decay=1.5)


def test_groups_begin_to_average_at_any_step():
    a, b = parameters(shapes=((3,), (4,)))
    optimizer = ours.RMSprop([{"params": [a], "ema_decay": 0.5}, {"params": [b]}])
    train(optimizer)
    assert "ema" not in optimizer.state[b]
    own = b.detach().clone()
    with optimizer.averages():
        assert torch.equal(b, own)
    optimizer.param_groups[1]["ema_decay"] = 0.5
    train(optimizer)
    assert torch.equal(optimizer.state[b]["ema"], 0.5 * own + 0.5 * b.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_average_that_begins_later_begins_at_the_master(dtype, transposed):
    """A step of 2⁻¹³ from 1 is lost in the parameter, and kept in its master."""
    numbers = torch.ones(3, 2, dtype=dtype).T if transposed else torch.ones(2, 3, dtype=dtype)
    p = torch.nn.Parameter(numbers)
    optimizer = ours.RMSprop([p], lr=2.0**-13, alpha=0.0, eps=1e-30, master_weights=True)
    p.grad = torch.tensor([[1, 0, 0], [0, 0, -1]], dtype=dtype)
    optimizer.step()
    assert (p == 1).all()
    optimizer.param_groups[0]["ema_decay"] = 1.0
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["ema"].tolist() == [[1 - 2.0**-13, 1.0, 1.0], [1.0, 1.0, 1 + 2.0**-13]]


def test_a_parameter_without_a_gradient_has_no_average():
    a, b = parameters(shapes=((3,), (4,)))
    optimizer = ours.RMSprop([a, b], **SETTINGS)
    a.grad = torch.ones_like(a)
    optimizer.step()
    own = b.detach().clone()
    with optimizer.averages():
        assert torch.equal(a.detach(), optimizer.state[a]["ema"])
        assert torch.equal(b, own)
    assert b not in optimizer.state


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_run_goes_on_with_the_same_averages(dtype):
    optimizer = ours.RMSprop(parameters(dtype), **SETTINGS)
    train(optimizer, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), params_of(optimizer)], file)
    file.seek(0)
    saved, params = torch.load(file, weights_only=False)
    other = ours.RMSprop(params)
    other.load_state_dict(saved)
    assert_equal(averages_of(other), averages_of(optimizer))
    for each in optimizer, other:
        train(each, 2, seed=2)
    assert_equal(averages_of(other), averages_of(optimizer))
    theirs = torch.optim.RMSprop([p.detach().clone().requires_grad_() for p in params_of(optimizer)])
    theirs.load_state_dict(optimizer.state_dict())
    train(theirs)


def test_state_moves_to_the_native_optimizer_and_back():
    optimizer = ours.RMSprop(parameters(), **SETTINGS)
    train(optimizer, 3)
    arrays = [as_array(p) for p in params_of(optimizer)]
    native = rmsfast.RMSProp(arrays)
    native.load_state_dict(to_native(optimizer.state_dict()))
    assert (native.ema_decay, native.clip_weights) == (0.8, 1.5)
    for i, average in enumerate(averages_of(optimizer)):
        assert np.array_equal(native.state[i]["ema"], average.numpy())
    back = ours.RMSprop([p.detach().clone().requires_grad_() for p in params_of(optimizer)])
    back.load_state_dict(from_native(native.state_dict()))
    assert_equal(averages_of(back), averages_of(optimizer))


def test_state_of_another_dtype_is_converted():
    optimizer = ours.RMSprop(parameters(torch.float32), **SETTINGS)
    train(optimizer)
    for p in params_of(optimizer):
        p.data = p.data.double()
        p.grad = None
    train(optimizer)
    assert not optimizer._others
    assert {a.dtype for a in averages_of(optimizer)} == {torch.float64}


def test_parameters_that_are_not_for_the_kernel_have_averages_too():
    exact = parameters(torch.float64, ((40,), (7,)))
    mixed = [
        torch.nn.Parameter(torch._neg_view(-exact[0].detach())),
        torch.nn.Parameter(exact[1].detach().clone()),
    ]
    a, b = ours.RMSprop(mixed, **SETTINGS), ours.RMSprop(exact, **SETTINGS)
    for step in range(3):
        train(a, seed=step)
        train(b, seed=step)
    assert [i for i, *_ in a._others] == [0]
    for p, q in zip(mixed, exact, strict=True):
        assert (p - q).abs().max() < 1e-12
        assert (a.state[p]["ema"] - b.state[q]["ema"]).abs().max() < 1e-12
    before = mixed[0].detach().clone()
    with a.averages():
        assert (mixed[0] - a.state[mixed[0]]["ema"]).abs().max() < 1e-12
    assert torch.equal(mixed[0], before)


def test_sparse_gradients_move_the_averages_of_their_rows():
    for native in True, False:
        table = torch.nn.Embedding(6, 3, sparse=True)
        weight = table.weight if native else torch.nn.Parameter(torch._neg_view(-table.weight.detach()))
        optimizer = ours.RMSprop([weight], **{**SETTINGS, "clip_weights": 0.5})
        before = weight.detach().clone()
        weight.grad = torch.sparse_coo_tensor([[1, 4, 1]], torch.ones(3, 3), (6, 3))
        optimizer.step()
        average = optimizer.state[weight]["ema"]
        moved = [1, 4]
        rest = [0, 2, 3, 5]
        assert torch.equal(average[rest], before[rest])
        assert torch.equal(weight[rest], before[rest])
        assert torch.allclose(average[moved], 0.8 * before[moved] + 0.2 * weight[moved].detach())
        assert (weight[moved].abs() <= 0.5).all()
        assert not torch.equal(weight[moved], before[moved])


def test_the_same_in_backward():
    results = []
    for backward in True, False:
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        optimizer = ours.RMSprop(model.parameters(), **SETTINGS)
        if backward:
            step_in_backward(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).square().sum().backward()
            optimizer.step()
        results.append([*map(torch.Tensor.detach, model.parameters()), *averages_of(optimizer)])
    assert_equal(*results)


@pytest.mark.parametrize("setting", ["clip_weights", "clip_value"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("native", [True, False])
def test_a_limit_that_is_infinite_in_the_dtype_is_none(setting, dtype, native):
    """A step through PyTorch's operations, as on a parameter with gaps, must not fail halfway."""
    limit = {torch.float16: 1e6, torch.bfloat16: 3.4e38, torch.float32: 1e39}[dtype]
    numbers = torch.tensor([1, torch.finfo(dtype).max, -float("inf"), 0], dtype=dtype)
    p, twin = (torch.nn.Parameter(numbers.clone() if native else torch.stack([numbers] * 2, 1)[:, 0]) for _ in range(2))
    optimizer, other = ours.RMSprop([p], lr=0.25, **{setting: limit}), ours.RMSprop([twin], lr=0.25)
    p.grad, twin.grad = torch.ones(4, dtype=dtype), torch.ones(4, dtype=dtype)
    optimizer.step()
    other.step()
    assert bool(optimizer._others) is not native
    assert torch.equal(p, twin)
    assert int(optimizer.state[p]["step"]) == 1


@pytest.mark.parametrize("native", [True, False])
def test_a_limit_between_the_largest_number_and_infinity_is_the_largest(native):
    numbers = torch.tensor([1.0, float("inf"), -float("inf")], dtype=torch.float16)
    p = torch.nn.Parameter(numbers if native else torch.stack([numbers] * 2, 1)[:, 0])
    optimizer = ours.RMSprop([p], lr=0.0, clip_weights=65_510.0)
    p.grad = torch.ones(3, dtype=torch.float16)
    optimizer.step()
    assert p.tolist() == [1, 65_504, -65_504]


@pytest.mark.parametrize("native", [True, False])
def test_an_infinite_gradient_in_half_precision_is_clipped(native):
    numbers = torch.ones(3, dtype=torch.float16)
    p = torch.nn.Parameter(numbers if native else torch.stack([numbers] * 2, 1)[:, 0])
    optimizer = ours.RMSprop([p], lr=0.5, alpha=0.0, eps=0.0, clip_value=1e6)
    p.grad = torch.tensor([float("inf"), -float("inf"), 2.0], dtype=torch.float16)
    optimizer.step()
    assert p.tolist() == [0.5, 1.5, 0.5]


@pytest.mark.parametrize("raising", [False, True])
def test_what_can_be_given_back_is_given_back(raising):
    params = parameters(shapes=((4,), (3,), (), (5,)))
    optimizer = ours.RMSprop(params, **SETTINGS)
    train(optimizer, 2)
    own = [p.detach().clone() for p in params]
    message = r"^parameter 1: now of shape \(7,\), expected \(3,\), as before averages\(\)\. It did not get"
    with pytest.raises(RuntimeError, match=message) as caught, optimizer.averages():
        params[1].data = torch.ones(7)
        params[2].data = torch.ones(2)  # to which a single number could be copied
        if raising:
            raise KeyError
    assert isinstance(caught.value.__context__, KeyError) == raising
    assert_equal([params[0].detach(), params[3].detach()], [own[0], own[3]])
    assert_equal([params[1].detach(), params[2].detach()], [torch.ones(7), torch.ones(2)])
    for i in 1, 2:
        params[i].data = own[i]
    train(optimizer)
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {3}
