"""Formats inside of PyTorch: the bits of the reference, state dicts that move, and refusals."""

import copy
import io

import numpy as np
import pytest
from helpers import assert_same_bits

import rmsfast

torch = pytest.importorskip("torch")
bfloat16 = pytest.importorskip("ml_dtypes").bfloat16

from rmsfast.torch import RMSprop, RMSpropTFLike, from_native, step_in_backward, to_native  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDED = [{}, {"master_weights": True}, {"rounding": "stochastic", "seed": 4}]
FORMATS = [
    (dtype, {"state_dtype": state, **rounded})
    for dtype in DTYPES
    for state in (None, "bfloat16", "uint8")
    for rounded in (ROUNDED[:1] if dtype is torch.float32 else ROUNDED)
]
of_every_format = pytest.mark.parametrize(("dtype", "formats"), FORMATS)


def as_array(tensor):
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(bfloat16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def parameters(dtype, seed=0, shapes=((37, 53), (65,), ())):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def train(optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def twins(dtype, formats, cls=RMSprop, **settings):
    params = parameters(dtype)
    return params, cls(params, lr=0.01, alpha=0.9, **settings, **formats)


@of_every_format
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True}], ids=["plain", "all state"])
def test_the_bits_of_the_reference(dtype, formats, settings):
    params, optimizer = twins(dtype, formats, **settings)
    arrays = [as_array(p).copy() for p in params]
    reference = rmsfast.reference.RMSProp(arrays, lr=0.01, beta=0.9, **settings, **formats)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        reference.step([as_array(p.grad).copy() for p in params])
        optimizer.step()
    for i, (p, w) in enumerate(zip(params, arrays, strict=True)):
        assert_same_bits(as_array(p), w)
        assert optimizer.state[p].keys() == reference.state[i].keys()
        for name, value in reference.state[i].items():
            if name != "step":
                stored = as_array(optimizer.state[p][name])
                assert stored.nbytes == value.nbytes
                assert_same_bits(stored.reshape(-1).view(np.uint8), np.asarray(value).reshape(-1).view(np.uint8))


@of_every_format
def test_a_saved_run_goes_on_with_the_same_bits(dtype, formats):
    params, optimizer = twins(dtype, formats, momentum=0.9)
    train(optimizer, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), params], file)
    file.seek(0)
    saved, others = torch.load(file, weights_only=False)
    other = RMSprop(others, lr=0.01, alpha=0.9, momentum=0.9, **formats)
    other.load_state_dict(saved)
    for each in optimizer, other:
        train(each, 3, seed=2)
    for p, q in zip(params, others, strict=True):
        assert_same_bits(as_array(p), as_array(q))


@of_every_format
@pytest.mark.parametrize(("other_dtype", "other"), [FORMATS[0], FORMATS[2], FORMATS[-2], FORMATS[-3]])
def test_state_goes_on_in_every_other_format(dtype, formats, other_dtype, other):
    _, optimizer = twins(dtype, formats, momentum=0.9)
    train(optimizer, 3)
    _, second = twins(other_dtype, other, momentum=0.9)
    second.load_state_dict(
        copy.deepcopy({**optimizer.state_dict(), "param_groups": second.state_dict()["param_groups"]})
    )
    before = [to_numbers(optimizer, p) for p in optimizer.param_groups[0]["params"]]
    train(second, 1, seed=3)
    assert all(second.state[p]["step"] == 4 for p in second.param_groups[0]["params"])
    for v, p in zip(before, second.param_groups[0]["params"], strict=True):
        assert (to_numbers(second, p) >= 0.9 * v * (1 - 2**-3)).all()  # v decays by β, and is off by its rounding


def to_numbers(optimizer, p):
    """v as float32, whatever stores it."""
    entry = optimizer.state[p]
    v = as_array(entry["square_avg"]).reshape(-1)
    if v.dtype == np.uint8:
        return rmsfast.formats.load("unsigned8", v, as_array(entry["square_avg_scale"]))
    return v.astype(np.float32)


@pytest.mark.parametrize("formats", [{}, {"state_dtype": "bfloat16"}], ids=["float32 state", "bfloat16 state"])
def test_pytorchs_own_optimizer_goes_on_and_the_format_comes_back(formats):
    _, optimizer = twins(torch.bfloat16, formats)
    train(optimizer, 3)
    own = torch.optim.RMSprop(parameters(torch.bfloat16), lr=0.01, alpha=0.9)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(own, 1, seed=3)
    back = RMSprop(parameters(torch.bfloat16), lr=0.01, alpha=0.9)
    back.load_state_dict(own.state_dict())
    train(back, 1, seed=3)
    for p in back.param_groups[0]["params"]:
        assert back.state[p]["square_avg"].dtype is (torch.bfloat16 if formats else torch.float32)
        assert back.state[p]["step"] == 5


@of_every_format
def test_state_becomes_that_of_numpys_optimizer_and_comes_back(dtype, formats):
    params, optimizer = twins(dtype, formats)
    train(optimizer, 3)
    arrays = [as_array(p).copy() for p in params]
    native = rmsfast.RMSProp(arrays, lr=0.01, beta=0.9, **formats)
    native.load_state_dict(to_native(optimizer.state_dict()))
    third = RMSprop(parameters(dtype), lr=0.01, alpha=0.9, **formats)
    third.load_state_dict(from_native(native.state_dict()))
    train(third, 1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    native.step([np.ones_like(w) for w in arrays])
    for p, w in zip(params, arrays, strict=True):
        assert_same_bits(as_array(p), w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float64_state_becomes_float32(dtype):
    _, optimizer = twins(dtype, {})
    train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["square_avg"] = entry["square_avg"].double()
    other = RMSprop(parameters(dtype), lr=0.01, alpha=0.9)
    other.load_state_dict(saved)
    train(other, 1)
    for p in other.param_groups[0]["params"]:
        assert other.state[p]["square_avg"].dtype is torch.float32
    assert not other._others


def test_a_group_that_changes_its_format_is_converted():
    params, optimizer = twins(torch.float32, {})
    train(optimizer, 2)
    optimizer.param_groups[0]["state_dtype"] = "uint8"
    train(optimizer, 1)
    assert {optimizer.state[p]["square_avg"].dtype for p in params} == {torch.uint8}
    del optimizer.param_groups[0]["state_dtype"]
    train(optimizer, 1)
    assert {optimizer.state[p]["square_avg"].dtype for p in params} == {torch.float32}
    assert all("square_avg_scale" not in optimizer.state[p] for p in params)


def test_a_sparse_gradient_of_a_bfloat16_table():
    weight = torch.nn.Parameter(torch.ones(10, 4, dtype=torch.bfloat16))
    optimizer = RMSprop([weight], lr=0.5, alpha=0.0, eps=0.0)
    values = torch.ones(3, 4, dtype=torch.bfloat16)
    weight.grad = torch.sparse_coo_tensor([[2, 7, 2]], values, (10, 4), check_invariants=True)
    optimizer.step()
    expected = torch.ones(10, 4, dtype=torch.bfloat16)
    expected[[2, 7]] = 0.5
    assert torch.equal(weight.detach(), expected)


@pytest.mark.parametrize("cls", [RMSprop, RMSpropTFLike])
@pytest.mark.parametrize(
    ("dtype", "formats", "message"),
    [
        (torch.float32, {"master_weights": True}, "master_weights: True with float32 parameters, expected float16 or"),
        (torch.float32, {"rounding": "stochastic"}, "rounding: 'stochastic' with float32 parameters, expected float16"),
        (torch.bfloat16, {"rounding": "up"}, "rounding: 'up', expected 'nearest' or 'stochastic'"),
        (torch.bfloat16, {"state_dtype": "float8"}, "state_dtype: 'float8', expected None or 'bfloat16' or 'uint8'"),
        (torch.bfloat16, {"seed": -1}, r"seed: -1, expected an integer from 0 to 2\*\*63 - 1"),
    ],
)
def test_refused_formats(cls, dtype, formats, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        cls(parameters(dtype), **formats)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            lambda: parameters(torch.float64),
            "parameter 0: torch.float64 with state_dtype='uint8', expected float32, float16",
        ),
        (
            lambda: parameters(torch.complex64),
            "parameter 0: torch.complex64 with state_dtype='uint8', expected float32",
        ),
    ],
    ids=["float64", "complex64"],
)
def test_a_parameter_that_cannot_have_the_format_is_refused_at_its_first_step(params, message):
    params = params()
    optimizer = RMSprop(params, state_dtype="uint8")
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=f"^{message}"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not any(optimizer.state[p] for p in params if p in optimizer.state)


@pytest.mark.parametrize("scale", [torch.zeros(1, dtype=torch.uint8), torch.zeros(32, dtype=torch.int16), None])
def test_scales_that_do_not_fit_are_refused(scale):
    p = torch.nn.Parameter(torch.ones(32, 64))
    optimizer = RMSprop([p], state_dtype="uint8")
    train(optimizer, 1)
    optimizer.state[p]["square_avg_scale"] = scale
    if scale is None:
        del optimizer.state[p]["square_avg_scale"]
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"^state: square_avg_scale: .*, expected torch.uint8 of shape \(32,\)"):
        train(optimizer, 1)
    assert torch.equal(p, before)


def test_codes_follow_a_parameter_into_another_memory_order():
    p = torch.nn.Parameter(torch.ones(64, 8, 3, 3))
    optimizer = RMSprop([p], lr=0.0, alpha=1.0, state_dtype="uint8")
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["square_avg"].random_(0, 255, generator=torch.Generator().manual_seed(1))
    optimizer.state[p]["square_avg_scale"].random_(100, 140, generator=torch.Generator().manual_seed(2))
    before = to_numbers(optimizer, p).reshape(p.shape)
    p.data = p.data.contiguous(memory_format=torch.channels_last)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    entry = optimizer.state[p]
    codes = entry["square_avg"].permute(0, 2, 3, 1)  # in memory order
    assert codes.is_contiguous()
    after = rmsfast.formats.load("unsigned8", as_array(codes).reshape(-1), as_array(entry["square_avg_scale"]))
    after = after.reshape(codes.shape).transpose(0, 3, 1, 2)
    largest = before.max()  # numbers far below the largest of their new block are at its floor
    assert (abs(after - before) <= 2.0**-3 * before + 2.0**-14 * largest).all()


def test_a_group_of_several_dtypes_steps_in_backward_with_random_bits_of_each():
    params = [torch.nn.Parameter(torch.ones(256, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32) * 2]
    twin = [torch.nn.Parameter(p.detach().clone()) for p in params]
    settings = {"rounding": "stochastic", "lr": 1e-3}
    inside, ordinary = RMSprop(params, **settings), RMSprop(twin, **settings)
    step_in_backward(inside)
    for _ in range(4):
        for each in params, twin:
            sum((p.float() * 1.5).sum() for p in each).backward()
        for optimizer in inside, ordinary:
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(params[0], params[2])
    for p, q in zip(params, twin, strict=True):
        assert_same_bits(as_array(p), as_array(q))
