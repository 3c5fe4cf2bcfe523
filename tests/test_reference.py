"""The rule itself, against numbers worked out by hand and against what it is for: reaching a minimum."""

import numpy as np
import pytest
from helpers import textbook

import rmsfast

OPTIMIZERS = [rmsfast.RMSProp, rmsfast.reference.RMSProp]
UPDATES = [rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update]


@pytest.mark.parametrize("update", UPDATES)
def test_a_step_by_hand(update):
    """A text in circulation has (0.999048, 1.998096) here, by slips of arithmetic; its β is the weight of g²."""
    w, v, g = np.array([1.0, 2.0]), np.array([0.1, 0.1]), np.array([0.1, 0.2])
    update(w, v, g, lr=0.01, beta=0.1, eps=0.01)
    assert v == pytest.approx([0.019, 0.046], rel=1e-14)
    expected = [1 - 0.001 / (0.019**0.5 + 0.01), 2 - 0.002 / (0.046**0.5 + 0.01)]
    assert w == pytest.approx(expected, rel=1e-14)
    assert w == pytest.approx([0.993236, 1.991090], abs=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_linear_regression_reaches_least_squares(optimizer):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2))
    y = x @ [1.5, -2.0] + 0.1 * rng.standard_normal(100)
    w = np.zeros(2)
    opt = optimizer(w, lr=lambda step: 0.05 * 0.99**step)
    for _ in range(1000):
        opt.step(2 * x.T @ (x @ w - y) / len(y))
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    # Steps shrink to 0.05 · 0.99¹⁰⁰⁰ ≈ 2e-6, and the distance with them.
    assert w == pytest.approx(solution, abs=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_small_and_large_gradients_are_alike(optimizer):
    """One parameter sees gradients near 0.1, the other near 10: after warm-up both move by about lr."""
    rng = np.random.default_rng(0)
    w = np.zeros(2)
    opt = optimizer(w, lr=0.01)
    moves = []
    for step in range(60):
        before = w.copy()
        opt.step(np.array([0.1 + 0.01 * rng.standard_normal(), [10.0, -8.0, 12.0][step % 3]]))
        moves.append(np.abs(w - before))
    small, large = np.mean(moves[30:], axis=0)
    assert 0.1 < small / large < 10
    assert 0.005 < small < 0.02


@pytest.mark.parametrize("update", UPDATES)
def test_beta_of_one_never_learns_the_scale(update):
    """With v kept at 0 the denominator stays eps, and the step is lr·g/eps."""
    w, v = np.zeros(3), np.zeros(3)
    for _ in range(5):
        update(w, v, np.array([1e-3, 1.0, 1e3]), lr=1e-8, beta=1.0, eps=1e-8)
    assert v.tolist() == [0, 0, 0]
    assert w == pytest.approx([-5e-3, -5.0, -5e3], rel=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_nothing_to_divide_by(update):
    """eps = 0 with v = 0: a zero gradient gives 0/0, as plain NumPy does."""
    w, v = np.ones(2), np.zeros(2)
    update(w, v, np.array([0.0, 1e-200]), eps=0.0)
    assert np.isnan(w[0])
    assert w[1] == -np.inf


def test_the_reference_leaves_numpys_error_state_alone():
    w, v = np.ones(2, np.float32), np.zeros(2, np.float32)
    with np.errstate(all="raise"):
        for update in UPDATES:
            update(w, v, np.full(2, 1e30, np.float32))
        expected = np.geterr()
    assert expected["over"] == "raise"
    assert v.tolist() == [np.inf, np.inf]


def test_float32_stays_float32():
    """NumPy 2's promotion: a setting given as np.float64 must not make a float32 step a float64 one."""
    w, v = np.full(100, 0.1, np.float32), np.zeros(100, np.float32)
    g = np.linspace(0.1, 1, 100, dtype=np.float32)
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g, 0.1, 0.9, 1e-8)
    opt = rmsfast.reference.RMSProp(w, lr=np.float64(0.1), beta=np.float64(0.9), eps=np.float64(1e-8))
    opt.step(g)
    assert w.tolist() == expected_w.tolist()
    assert opt.state[0]["square_avg"].tolist() == expected_v.tolist()
