"""rmsfast against the real PyTorch, Keras and Optax, where they are installed: the same numbers up to rounding."""

import importlib
import inspect
import sys

import numpy as np
import pytest
from peers.frameworks import RUN, SETTINGS, draw, tolerance

import rmsfast

PACKAGES = {"torch": ("torch",), "keras": ("keras", "torch"), "optax": ("optax", "jax")}
RATE = {"torch": "lr", "keras": "learning_rate", "optax": "learning_rate"}
SHAPES = [(3, 4), (5,), ()]

# What the frameworks have to say about their own insides is no concern of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True, scope="module")
def keras_in_float32_again():
    """For the tests of other files in this process."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.set_floatx("float32")


@pytest.fixture(params=RUN)
def framework(request):
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return request.param


def problem(rng, steps=50, shapes=SHAPES):
    rates = (0.05 * rng.uniform(0.1, 1, steps)).tolist()
    start = [rng.standard_normal(shape) for shape in shapes]
    gradients = [[np.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-1, 1)) for shape in shapes] for _ in rates]
    return rates, [np.asarray(w) for w in start], gradients


def ours(cls, settings, rates, start, gradients):
    params = [w.copy() for w in start]
    opt = cls(params, **{**settings, "lr": lambda step: rates[step]})
    after = []
    for grads in gradients:
        opt.step(grads)
        after.append([w.copy() for w in params])
    return after


def largest_difference(actual, expected):
    """Relative to the largest element of each array."""
    return max(
        np.abs(a - e).max() / np.abs(e).max()
        for step_a, step_e in zip(actual, expected, strict=True)
        for a, e in zip(step_a, step_e, strict=True)
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_same_numbers(framework, seed):
    rng = np.random.default_rng(seed)
    kwargs = draw(rng, framework)
    rates, start, gradients = problem(rng)
    expected = RUN[framework](kwargs, rates, start, gradients)
    settings = getattr(rmsfast.dialects, framework)(**{RATE[framework]: rates[0]}, **kwargs)
    actual = ours(rmsfast.RMSProp, settings, rates, start, gradients)
    assert largest_difference(actual, expected) <= tolerance(framework, kwargs), kwargs


def test_every_value_is_drawn(framework):
    drawn = [draw(np.random.default_rng(seed), framework) for seed in range(60)]
    for key, values in SETTINGS[framework].items():
        if key != "clip":
            assert {kwargs[key] for kwargs in drawn} == set(values)


def test_the_signature_is_the_frameworks(framework):
    """The same names, in the same order, with the same defaults."""
    module = importlib.import_module({"torch": "torch.optim", "keras": "keras.optimizers", "optax": "optax"}[framework])
    real = inspect.signature(getattr(module, "rmsprop" if framework == "optax" else "RMSprop"))
    dialect = inspect.signature(getattr(rmsfast.dialects, framework))
    expected = {
        name: p.default
        for name, p in real.parameters.items()
        if name not in ("self", "params") and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert {name: p.default for name, p in dialect.parameters.items()} == expected
    assert list(dialect.parameters) == list(expected)


def test_the_averages_of_keras():
    """Keras's begin as the weights after the first step, w₁, ours as those before, w₀. They differ by dᵗ·(w₀ − w₁)."""
    keras, torch = pytest.importorskip("keras"), pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    rates, start, gradients = problem(rng)
    keras.backend.set_floatx("float64")
    variables = [keras.Variable(w) for w in start]
    optimizer = keras.optimizers.RMSprop(use_ema=True, ema_momentum=0.75)
    optimizer.build(variables)
    params = [w.copy() for w in start]
    opt = rmsfast.RMSProp(params, **rmsfast.dialects.keras(use_ema=True, ema_momentum=0.75))
    first = []
    for t, (rate, grads) in enumerate(zip(rates, gradients, strict=True), 1):
        optimizer.learning_rate = opt.lr = rate
        optimizer.apply([torch.tensor(g) for g in grads])
        opt.step(grads)
        first = first or [w.copy() for w in params]
        for i, average in enumerate(optimizer._model_variables_moving_average):
            theirs = keras.ops.convert_to_numpy(average)
            expected = opt.state[i]["ema"] - 0.75**t * (start[i] - first[i])
            assert np.abs(theirs - expected).max() <= 1e-12 * np.abs(expected).max()


def test_complex_parameters_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for kwargs in {}, {"momentum": 0.9, "weight_decay": 0.1}, {"centered": True, "maximize": True}:
        start = rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4))
        theirs = torch.nn.Parameter(torch.tensor(start))
        optimizer = torch.optim.RMSprop([theirs], lr=0.01, **kwargs)
        w = start.copy()
        opt = rmsfast.RMSProp([w], **rmsfast.dialects.torch(lr=0.01, **kwargs))
        for _ in range(50):
            g = rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4))
            theirs.grad = torch.tensor(g)
            optimizer.step()
            opt.step([g])
        assert largest_difference([[w]], [[theirs.detach().numpy()]]) <= 1e-11


@pytest.mark.parametrize("eps_in_sqrt", [False, True])
def test_where_optax_goes_nan_ours_does_not(eps_in_sqrt):
    """Centered with bias correction: at the first step, rounding decides the sign of v̂ − m̂²."""
    pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    rates, start, gradients = problem(rng, shapes=[(2000,)])
    kwargs = {
        "centered": True,
        "bias_correction": True,
        "eps": 0.0 if eps_in_sqrt else 1e-8,
        "eps_in_sqrt": eps_in_sqrt,
    }
    theirs = RUN["optax"](kwargs, rates, start, gradients)
    settings = rmsfast.dialects.optax(rates[0], **kwargs) | ({"eps": 1e-8} if eps_in_sqrt else {})
    mine = ours(rmsfast.RMSProp, settings, rates, start, gradients)
    assert np.isnan(theirs[0][0]).any()
    assert np.isfinite(mine[-1][0]).all()
