"""Every combination of settings has the bits of the reference, and each setting does what its name says."""

import copy
from itertools import combinations, islice, product

import numpy as np
import pytest
from helpers import assert_same_bits, every_kind_of_number, fleeting, misaligned

import rmsfast

CLASSES = [rmsfast.RMSProp, rmsfast.reference.RMSProp]
DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
LIMITS = ["clip_value", "clip_norm", "clip_global_norm", "clip_weights"]

# Each switch with its positions: settings of the optimizer and, under "step", arguments of `step`.
SWITCHES = [
    [{}, {"momentum": 0.9}, {"momentum": 0.3, "nesterov": True}],
    [{}, {"centered": True}],
    [{}, {"weight_decay": 0.05}, {"weight_decay": 0.05, "decoupled_weight_decay": True}],
    [{"eps": 1e-8}, {"eps": 0.3}, {"eps": 0.3, "eps_inside_sqrt": True}],
    [{}, {"lr_in_momentum": True}],
    [{}, {"bias_correction": True}],
    [{}, {"initial_square_avg": 1.0}],
    [{}, {"maximize": True}],
    [{}, {"clip_value": 0.7}, {"clip_norm": 2.0}, {"clip_global_norm": 3.0}],
    [{}, {"nonfinite": "skip"}],
    [{}, {"step": {"grad_scale": 0.37}}, {"step": {"zero_grads": True}}],
    [{}, {"clip_weights": 0.3}, {"ema_decay": 0.9}, {"ema_decay": 0.3, "clip_weights": 0.5}],
]


def merged(positions):
    settings = {"lr": 0.1}
    for position in positions:
        settings |= position
    return settings, settings.pop("step", {})


def pairwise_cover(switches=SWITCHES):
    """Combinations of positions in which each pair of positions of two switches occurs."""
    pairs = {
        ((i, a), (j, b))
        for (i, first), (j, second) in combinations(enumerate(switches), 2)
        for a in range(len(first))
        for b in range(len(second))
    }
    rng = np.random.default_rng(0)
    cover = []
    while pairs:
        tries = [tuple(rng.integers(len(switch)) for switch in switches) for _ in range(30)]
        covered = [pairs & set(combinations(enumerate(positions), 2)) for positions in tries]
        best = max(range(len(tries)), key=lambda k: len(covered[k]))
        cover.append([switch[position] for switch, position in zip(switches, tries[best], strict=True)])
        pairs -= covered[best]
    return cover


def random_array(rng, shape, dtype):
    if np.dtype(dtype).kind == "c":
        real = np.dtype(dtype).type(0).real.dtype
        return np.array(fleeting(rng, shape, real) + 1j * fleeting(rng, shape, real), dtype)
    return np.array(fleeting(rng, shape, dtype))


def assert_same_run(opt, params, twin, twin_params):
    for w, t in zip(params, twin_params, strict=True):
        assert_same_numbers(w, t)
    for key, entry in twin.state.items():
        assert list(opt.state[key]) == list(entry)
        assert opt.state[key]["step"] == entry["step"]
        for name in list(entry)[1:]:
            assert_same_numbers(opt.state[key][name], entry[name])


def assert_same_numbers(actual, expected):
    assert actual.dtype == expected.dtype
    assert_same_bits(*[np.ascontiguousarray(a).reshape(-1).view(a.real.dtype) for a in (actual, expected)])


SHAPES = [(), (0, 3), (7,), (1500,), (30, 41), (3, 4, 5), (1,), (2048,)]


def compare(rng, settings, arguments, dtypes, threads):
    """Three steps of the kernel and of the reference on arrays of many shapes, orders and layouts."""
    params = [
        np.asarray(random_array(rng, shape, dtypes[i % len(dtypes)]), order="CF"[i % 2])
        for i, shape in enumerate(SHAPES)
    ]
    twins = [w.copy(order="K") for w in params]
    opt = rmsfast.RMSProp(params, **settings, num_threads=threads)
    twin = rmsfast.reference.RMSProp(twins, **settings)
    for step in range(3):
        grads = []
        for i, w in enumerate(params):
            g = random_array(rng, w.shape, w.dtype)
            if i == 4:  # rows, some of them twice
                g = random_array(rng, (12, 41), w.dtype)
                g = rmsfast.Rows(rng.integers(0, 30, 12), misaligned(g) if step else g)
            elif step == 1 and w.ndim > 0:
                g = np.repeat(g, 2, axis=0)[::2]
            elif step == 2:
                g = np.asarray(g, order="F")
            grads.append(g if (i + step) % 5 else None)
        copies = [copy_of(g) for g in grads]
        opt.step(grads, **arguments)
        twin.step(copies, **arguments)
        for g, c in zip(grads, copies, strict=True):
            if g is not None:
                assert_same_numbers(values_of(g), values_of(c))
                assert (values_of(g) == 0).all() or not arguments.get("zero_grads")
    assert_same_run(opt, params, twin, twins)


def values_of(g):
    return g.values if isinstance(g, rmsfast.Rows) else g


def copy_of(g):
    if isinstance(g, rmsfast.Rows):
        return rmsfast.Rows(g.indices, g.values.copy())
    return None if g is None else g.copy(order="K")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtypes", [[np.float32], [np.float64, np.complex64], [np.complex128, np.float32]])
def test_every_pair_of_settings(rng, short_stretches, dtypes, threads):
    for positions in pairwise_cover():
        compare(rng, *merged(positions), dtypes, threads)


@pytest.mark.slow
def test_every_combination_of_settings(rng, short_stretches):
    """The whole cross product; types, numbers of threads and what follows the update take turns.

    For the narrower instruction sets, which have the same source, a fifth of it, which has all pairs.
    """
    *switches, last = SWITCHES
    stride = 1 if rmsfast.config()["isa"] == rmsfast.config()["isas"][-1] else 5
    for i, positions in islice(enumerate(product(*switches)), 0, None, stride):
        follows = last[i // 16 % len(last)]
        compare(rng, *merged([*positions, follows]), [DTYPES[i % 4], DTYPES[i // 4 % 4]], 1 + i % 3)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_every_kind_of_number_in_every_variant(rng, dtype):
    """NaNs, infinities, signed zeros and subnormal numbers, in gradients, parameters and state."""
    for positions in pairwise_cover():
        settings, arguments = merged(positions)
        settings["nonfinite"] = "propagate"
        params = [every_kind_of_number(rng, 3000, dtype), every_kind_of_number(rng, 500, dtype)]
        twins = [w.copy() for w in params]
        opt, twin = rmsfast.RMSProp(params, **settings), rmsfast.reference.RMSProp(twins, **settings)
        state = opt.state_dict()
        for entry in state["state"].values():
            for name in list(entry)[1:]:
                entry[name] = every_kind_of_number(rng, len(entry[name]), dtype)
        opt.load_state_dict(state)
        twin.load_state_dict(state)
        for _ in range(2):
            grads = [every_kind_of_number(rng, len(w), dtype) for w in params]
            opt.step([g.copy() for g in grads], **arguments)
            twin.step([g.copy() for g in grads], **arguments)
        assert_same_run(opt, params, twin, twins)


def test_settings_of_groups_and_of_one_step_after_another(rng, short_stretches):
    """Every setting differs from group to group and changes from step to step."""
    covers = pairwise_cover()
    params = [fleeting(rng, n, np.float32) for n in (100, 1, 3000, 17, 64)]
    twins = [w.copy() for w in params]
    opt, twin = (cls([{"params": w} for w in each]) for cls, each in zip(CLASSES, (params, twins), strict=True))
    fresh = {name: value for name, value in opt.state_dict()["param_groups"][0].items() if name != "params"}
    for step in range(60):
        for i in range(len(params)):
            settings, arguments = merged(covers[(step * 3 + i) % len(covers)])
            settings["initial_square_avg"] = 0
            for each in opt, twin:
                each.param_groups[i].update(fresh | settings)
        grads = [fleeting(rng, w.shape, w.dtype) for w in params]
        opt.step([g.copy() for g in grads], **arguments)
        twin.step([g.copy() for g in grads], **arguments)
    assert_same_run(opt, params, twin, twins)


# ---- What each setting means ----


def one_step(cls, w, g, step=None, **settings):
    w, g = np.array(w, np.float64), np.array(g, np.float64)
    opt = cls(w, **settings)
    opt.step(g, **(step or {}))
    return w, opt.state[0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # By hand for w = 3, g = 2, lr = 1, beta = 0.75, eps = 0: v = 0.25·4 = 1, so w = 3 − 2/1.
        ({}, 1.0),
        ({"eps": 1.0}, 3 - 2 / 2),
        ({"eps": 3.0, "eps_inside_sqrt": True}, 3 - 2 / 2),
        ({"initial_square_avg": 4.0}, 3 - 2 / 2),  # v = 0.75·4 + 1 = 4
        ({"bias_correction": True}, 3 - 2 / 2),  # 1 / (1 − 0.75) = 4
        ({"centered": True}, 3 - 2 / 0.75**0.5),  # m = 0.5
        ({"centered": True, "bias_correction": True, "eps": 1.0}, 3 - 2.0),  # v̂ = 4 = m̂²: only eps is left
        ({"maximize": True}, 5.0),
        ({"weight_decay": 2.0}, 3 - 8 / 4),  # g = 2 + 2·3 = 8, v = 16
        ({"weight_decay": 0.5, "decoupled_weight_decay": True}, 3 - 1.5 - 2),
        ({"clip_value": 1.0}, 3 - 1 / 0.5),  # v = 0.25
        ({"clip_norm": 1.0, "eps": 0.5}, 3 - 1 / (0.5 + 0.5)),
        ({"clip_global_norm": 1.0, "eps": 0.5}, 3 - 1 / (0.5 + 0.5)),
        ({"clip_norm": 2.0}, 1.0),
        ({"step": {"grad_scale": 0.5}, "eps": 0.5}, 3 - 1 / (0.5 + 0.5)),
        ({"momentum": 0.5}, 1.0),
        ({"momentum": 0.5, "nesterov": True}, 3 - (2 + 0.5 * 2)),
        ({"clip_weights": 0.75}, 0.75),
        ({"clip_weights": 1.5}, 1.0),
        ({"clip_weights": 1.5, "maximize": True, "weight_decay": 0.5, "decoupled_weight_decay": True}, 1.5),
        ({"clip_weights": 0.25, "lr": 2.0}, -0.25),
        ({"ema_decay": 0.75}, 1.0),
    ],
)
def test_each_setting_by_hand(cls, settings, expected):
    w, _ = one_step(cls, [3.0], [2.0], **{"lr": 1.0, "beta": 0.75, "eps": 0.0, **settings})
    assert w == pytest.approx([expected], rel=1e-15)


MAX, TINY, INF, NAN = np.finfo(np.float64).max, np.finfo(np.float64).smallest_subnormal, np.inf, np.nan


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("g", "settings", "after_one", "after_two"),
    [
        # The table in docs/reliability.md: w and v after a step with g, and after one more with a gradient of 1.
        (MAX, {}, (3.0, INF), (3.0, INF)),
        (-MAX, {}, (3.0, INF), (3.0, INF)),
        (MAX, {"clip_value": 1.0}, (3 - 1 / (0.5 + 0.5), 0.25), None),
        (INF, {}, (NAN, INF), (NAN, INF)),
        (NAN, {}, (NAN, NAN), (NAN, NAN)),
        (0.0, {}, (3.0, 0.0), None),
        (0.0, {"eps": 0.0}, (NAN, 0.0), (NAN, 0.25)),
        (1e-200, {"eps": 0.0}, (-INF, 0.0), (-INF, 0.25)),
        (-1e-200, {"eps": 0.0}, (INF, 0.0), (INF, 0.25)),
        (2.0, {"beta": 0.0, "eps": 0.0}, (2.0, 4.0), (1.0, 1.0)),
        (2.0, {"beta": 1.0}, (3 - 2 / 0.5, 0.0), (3 - 4 - 2, 0.0)),
        (2.0, {"beta": 1.0, "eps": 0.0}, (-INF, 0.0), (-INF, 0.0)),
        (2.0, {"eps": INF}, (3.0, 1.0), (3.0, 1.0)),
        (2.0, {"lr": 0.0}, (3.0, 1.0), (3.0, 1.0)),
        (2.0, {"lr": INF}, (-INF, 1.0), None),
    ],
)
def test_numbers_at_the_edge_by_hand(cls, g, settings, after_one, after_two):
    w = np.array([3.0])
    opt = cls(w, **{"lr": 1.0, "beta": 0.75, "eps": 0.5, **settings})
    opt.step(np.array([g]))
    assert_same_bits([w[0], opt.state[0]["square_avg"][0]], after_one)
    if after_two is not None:
        opt.step(np.array([1.0]))
        assert_same_bits([w[0], opt.state[0]["square_avg"][0]], after_two)


@pytest.mark.parametrize("cls", CLASSES)
def test_subnormal_numbers_move_parameters(cls):
    w = np.zeros(1)
    cls(w, lr=1.0, beta=1.0, eps=1.0).step(np.array([3 * TINY]))
    assert w[0] == -3 * TINY


@pytest.mark.parametrize(("dtype", "start"), [(np.float32, 1e300), (np.complex64, 1e300), (np.float32, 1e-300)])
def test_a_start_that_the_type_cannot_hold(dtype, start):
    """It is rounded as all settings are, whatever NumPy is asked to do about it."""
    with np.errstate(all="raise"):
        opt = rmsfast.RMSProp(np.ones(3, dtype), initial_square_avg=start)
    numbers = opt.state[0]["square_avg"].view(np.float32)
    assert_same_bits(numbers, np.full_like(numbers, np.inf if start > 1 else 0))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_limits_of_the_weights_keep_nan_and_the_sign_of_zero(cls, dtype):
    w = np.array([NAN, 0.0, -0.0, INF, -INF, TINY, 0.5, -0.5, 0.25], dtype)
    expected = np.array([NAN, 0.0, -0.0, 0.25, -0.25, TINY, 0.25, -0.25, 0.25], dtype)
    opt = cls(w, lr=0.0, clip_weights=0.25)
    opt.step(np.full_like(w, 1.0))
    assert_same_bits(w, expected)
    opt.clip_weights = 1e-300  # 0 in float32
    opt.step(np.full_like(w, 1.0))
    most = dtype(1e-300)
    assert_same_bits(w, np.array([NAN, 0, -0.0, most, -most, min(TINY, most), most, -most, most], dtype))


@pytest.mark.parametrize("cls", CLASSES)
def test_weights_of_rows_are_limited_with_their_rows(cls):
    w = np.full((4, 2), 5.0)
    cls(w, clip_weights=1.0).step(rmsfast.Rows([2], np.ones((1, 2))))
    assert w.tolist() == [[5, 5], [5, 5], [1, 1], [5, 5]]


@pytest.mark.parametrize("cls", CLASSES)
def test_where_the_rate_enters_the_momentum(cls):
    """Two steps by hand with g/d = 1 each: after a buffer with the rate inside keeps the old one."""
    for inside, expected in (False, -(0.5 * 1 + 0.25 * 1.5)), (True, -(0.5 + (0.5 * 0.5 + 0.25))):
        w = np.zeros(1)
        opt = cls(w, lr=0.5, beta=1.0, eps=1.0, momentum=0.5, lr_in_momentum=inside)
        opt.step(np.ones(1))
        opt.lr = 0.25
        opt.step(np.ones(1))
        assert w == pytest.approx([expected], rel=1e-15)


@pytest.mark.parametrize("cls", CLASSES)
def test_centered_never_takes_the_root_of_a_negative_number(rng, cls):
    """A constant gradient has no variance; what rounding makes of v − m² is negative every other time."""
    w = np.zeros(500, np.float32)
    g = fleeting(rng, 500, np.float32)
    opt = cls(w, lr=0.1, centered=True, eps=1e-3)
    for _ in range(400):
        opt.step(g)
    square_avg, grad_avg = (opt.state[0][name] for name in ("square_avg", "grad_avg"))
    assert (square_avg - grad_avg * grad_avg < 0).any()
    assert np.isfinite(w).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_bias_correction_counts_each_parameters_own_steps(cls):
    """With eps 0, the first step of a parameter is lr·g/|g|, whenever it comes."""
    a, b = np.zeros(3), np.zeros(3)
    opt = cls([a, b], lr=0.5, eps=0.0, bias_correction=True)
    for _ in range(5):
        opt.step([np.full(3, 7.0), None])
    opt.step([None, np.full(3, 1e-3)])
    assert b == pytest.approx(-0.5, rel=1e-15)


@pytest.mark.parametrize("cls", CLASSES)
def test_complex_numbers_are_their_two_parts(rng, cls):
    for settings in {}, {"momentum": 0.9, "centered": True, "initial_square_avg": 1.0, "clip_norm": 1.0}:
        w = random_array(rng, (5, 7), np.complex64)
        parts = w.view(np.float32).copy()
        opt, twin = cls(w, **settings), cls(parts, **settings)
        for _ in range(3):
            g = random_array(rng, (5, 7), np.complex64)
            opt.step(np.asfortranarray(g))
            twin.step(g.view(np.float32))
        assert_same_bits(w.view(np.float32), parts)
        for name in list(opt.state[0])[1:]:
            assert opt.state[0][name].dtype == np.complex64
            assert_same_bits(opt.state[0][name].view(np.float32), twin.state[0][name])


@pytest.mark.parametrize("update", [rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update])
def test_complex_numbers_with_state_of_the_callers(rng, update):
    w, v, g = (random_array(rng, 40, np.complex128) for _ in range(3))
    parts = [a.view(np.float64).copy() for a in (w, v, g)]
    update(w, v, g)
    update(*parts)
    assert_same_bits(w.view(np.float64), parts[0])


# ---- Norms ----


def by_norm(gradients, **settings):
    """How much smaller gradients became: with beta 1 and eps 1, w moves by −lr·f·g."""
    params = [np.zeros(g.shape, g.dtype) for g in gradients]
    rmsfast.RMSProp(params, lr=1.0, beta=1.0, eps=1.0, **settings).step(gradients)
    return [-w for w in params]


def test_the_norm_of_each_parameter_and_of_all(rng):
    gradients = [
        fleeting(rng, shape, dtype) for shape, dtype in [((30, 50), np.float32), (7, np.float64), (3, np.float32)]
    ]
    norms = [np.linalg.norm(g.astype(np.float64).ravel()) for g in gradients]
    for g, norm, clipped in zip(gradients, norms, by_norm(gradients, clip_norm=0.1), strict=True):
        assert clipped == pytest.approx(g * min(1, 0.1 / norm), rel=1e-6)
    total = np.linalg.norm(norms)
    for g, clipped in zip(gradients, by_norm(gradients, clip_global_norm=0.1), strict=True):
        assert clipped == pytest.approx(g * (0.1 / total), rel=1e-6)
    for g, kept in zip(gradients, by_norm(gradients, clip_global_norm=1.001 * total), strict=True):
        assert_same_bits(kept, g)


@pytest.mark.parametrize("cls", CLASSES)
def test_groups_with_limits_of_their_own_share_the_norm_of_all(cls):
    params = [np.zeros(1), np.zeros(1), np.zeros(1)]
    limits = [{"clip_global_norm": 2.5}, {"clip_global_norm": 1.0}, {}]
    opt = cls([{"params": w, **limit} for w, limit in zip(params, limits, strict=True)], lr=1.0, beta=1.0, eps=1.0)
    opt.step([np.array([3.0]), np.array([4.0]), np.array([0.0])])
    assert [float(w[0]) for w in params] == [-1.5, pytest.approx(-0.8), 0.0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("limit", LIMITS)
def test_an_infinite_limit_is_none(cls, limit):
    w, _ = one_step(cls, [3.0, 3.0], [np.nan, 2.0], lr=1.0, beta=0.75, eps=0.0, **{limit: np.inf})
    assert np.isnan(w[0])
    assert w[1] == 1.0
    opt = cls(np.ones(2), clip_norm=1.0)
    opt.param_groups[0][limit] = np.float32(np.inf)
    assert opt.param_groups[0][limit] is None


def test_a_norm_that_no_square_can_hold():
    """Squares of float64 overflow beyond 1e154; the norm does not. One that does is taken as infinite."""
    huge = np.array([3e200, -4e200])
    assert by_norm([huge], clip_norm=5.0)[0] == pytest.approx([3.0, -4.0], rel=1e-15)
    clipped = by_norm([huge, np.float32([1.0]), np.array([1.0])], clip_global_norm=5.0)
    assert clipped[0] == pytest.approx([3.0, -4.0], rel=1e-15)
    assert clipped[1] == pytest.approx([1e-200], abs=1e-40)
    small = by_norm([np.array([1e200]), np.array([0.3])], clip_norm=1.0)
    assert [float(g[0]) for g in small] == [pytest.approx(1.0, rel=1e-15), 0.3]
    assert by_norm([np.full(4, 1.7e308)], clip_norm=1.0)[0].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "gradients", [[[1e300, 2e300], [np.inf]], [[1e200] * 3000, [1.0] * 3], [[np.nan, 1e300], [1.0]]]
)
@pytest.mark.parametrize("kind", ["clip_norm", "clip_global_norm"])
def test_norms_of_special_numbers_have_the_bits_of_the_reference(gradients, kind):
    for dtypes in (np.float64, np.float64), (np.float64, np.float32):
        grads = [np.array(g, dtype) for g, dtype in zip(gradients, dtypes, strict=True)]
        results = []
        for cls in CLASSES:
            params = [np.ones(g.shape, g.dtype) for g in grads]
            cls(params, **{kind: 1.0}).step(grads)
            results.append(params)
        for actual, expected in zip(*results, strict=True):
            assert_same_bits(actual, expected)


def test_scaling_beyond_float32_makes_a_norm_infinite():
    grads = [np.float32([1e30]), np.array([1e200, 1e200])]
    for kind in "clip_norm", "clip_global_norm":
        results = []
        for cls in CLASSES:
            params = [np.zeros(1, np.float32), np.zeros(2)]
            cls(params, **{kind: 1.0}).step(grads, grad_scale=1e20)
            results.append(params)
        for actual, expected in zip(*results, strict=True):
            assert_same_bits(actual, expected)


def test_any_number_of_threads_finds_the_same_norm(rng, short_stretches):
    """The last bits of a sum depend on its order: here they decide the bits of every element."""
    params = [random_array(rng, shape, np.float32) for shape in [(999,), (70, 80), (), (5000,), (1024,), (3, 3)]]
    grads = [np.asarray(random_array(rng, w.shape, np.float32), order="F") for w in params]
    results = []
    for threads in 1, 2, 3, 5, 8:
        copies = [w.copy() for w in params]
        rmsfast.RMSProp(copies, clip_global_norm=0.5, num_threads=threads).step(grads)
        results.append(copies)
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)


# ---- Nonfinite gradients ----


def bad_step(cls, names=None, **settings):
    params = [np.ones((2, 3), np.float32), np.ones(5), np.ones(4)]
    opt = cls(
        params if names is None else dict(zip(names, params, strict=True)), momentum=0.9, centered=True, **settings
    )
    good = [np.full_like(w, 0.5) for w in params]
    opt.step(good if names is None else dict(zip(names, good, strict=True)))
    bad = [g.copy() for g in good]
    bad[1][[1, 3]] = np.nan, -np.inf
    return opt, params, good, bad


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1.0}, {"clip_global_norm": 1.0}])
def test_a_step_with_nonfinite_gradients_is_skipped(cls, clip):
    asked = []
    opt, params, good, bad = bad_step(cls, nonfinite="skip", lr=lambda step: asked.append(step) or 0.1, **clip)
    before, state = [w.copy() for w in params], opt.state_dict()
    for skipped in 1, 2:
        opt.step(bad)
        assert opt.skipped_steps == skipped
        for w, b in zip(params, before, strict=True):
            assert_same_bits(w, b)
        after = opt.state_dict()
        for key, entry in state["state"].items():
            assert after["state"][key]["step"] == entry["step"] == 1
            for name in list(entry)[1:]:
                assert_same_bits(after["state"][key][name], entry[name])
    assert copy.deepcopy(opt).skipped_steps == 2
    opt.step(good)
    assert asked == [0, 1, 1, 1]
    assert opt.skipped_steps == 2
    assert opt.state[0]["step"] == 2


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_with_nonfinite_gradients_is_refused(cls):
    opt, params, _, bad = bad_step(cls, "abc", nonfinite="raise", clip_global_norm=1.0)
    before = [w.copy() for w in params]
    with pytest.raises(FloatingPointError) as caught:
        opt.step(dict(zip("abc", bad, strict=True)), zero_grads=True)
    assert (
        str(caught.value)
        == "grads['b']: 2 of 5 numbers are infinite or NaN, expected finite numbers (nonfinite='raise')"
    )
    for w, b in zip(params, before, strict=True):
        assert_same_bits(w, b)
    assert np.isnan(bad[1][1])
    assert opt.state["a"]["step"] == 1
    assert opt.skipped_steps == 0


@pytest.mark.parametrize("cls", CLASSES)
def test_a_skipped_step_still_sets_the_gradients_to_zero(cls):
    """Whoever adds up gradients in place would otherwise keep the NaN, and skip every step from here on."""
    opt, _, _, bad = bad_step(cls, nonfinite="skip")
    opt.step(bad, zero_grads=True)
    assert opt.skipped_steps == 1
    assert all((g == 0).all() for g in bad)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_gradient_as_given_decides(cls):
    """Not its norm, whose squares may overflow, nor what scaling makes of it."""
    w = np.zeros(2)
    opt = cls(w, nonfinite="raise", clip_norm=1.0)
    opt.step(np.array([1e300, 1e300]))
    w32 = np.zeros(1, np.float32)
    cls(w32, nonfinite="raise").step(np.float32([1e30]), grad_scale=1e20)
    assert np.isnan(w32[0])
    with pytest.raises(FloatingPointError, match="grads: 1 of 2 numbers"):
        opt.step(np.array([np.inf, 1.0]), grad_scale=0.0)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("own", "others", "outcome"), [("raise", "skip", "raise"), ("propagate", "raise", "step")])
def test_groups_decide_about_their_own_gradients(cls, own, others, outcome):
    params = [np.ones(3), np.ones(3), np.ones(3)]
    opt = cls([{"params": w, "nonfinite": kind} for w, kind in zip(params, (others, own, others), strict=True)])
    grads = [np.ones(3), np.array([1.0, np.nan, 1.0]), np.ones(3)]
    if outcome == "step":
        opt.step(grads)
        assert np.isnan(params[1][1])
        assert params[0][0] < 1
    else:
        with pytest.raises(FloatingPointError, match=r"grads\[1\]: 1 of 3"):
            opt.step(grads)
        grads[0][0] = grads[2][0] = np.inf  # the first and the last to be found ask for less
        with pytest.raises(FloatingPointError, match=r"grads\[1\]: 1 of 3"):
            opt.step(grads)
        assert params[0][0] == 1


@pytest.mark.parametrize("cls", CLASSES)
def test_both_parts_of_a_complex_number_are_counted(cls):
    opt = cls(np.ones(2, np.complex64), nonfinite="raise")
    with pytest.raises(FloatingPointError, match="grads: 3 of 4 numbers"):
        opt.step(np.array([complex(np.nan, np.inf), complex(1, np.nan)], np.complex64))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_parameter_that_is_named_is_one_of_this_step(cls):
    """Not one that was named before, and whose gradient has nothing in it now."""
    opt = cls([np.ones((3, 2)), np.ones((3, 2))], nonfinite="raise")
    bad = np.full((3, 2), np.nan)
    with pytest.raises(FloatingPointError, match=r"grads\[0\]: 6 of 6"):
        opt.step([bad, np.ones((3, 2))])
    with pytest.raises(FloatingPointError, match=r"grads\[1\]: 6 of 6"):
        opt.step([rmsfast.Rows([], np.ones((0, 2))), bad])


def test_every_position_of_a_nonfinite_element_is_seen(short_stretches):
    w = np.zeros(2100, np.float32)
    opt = rmsfast.RMSProp(w, nonfinite="raise", num_threads=3)
    for dtype_bad in np.nan, np.inf, -np.inf:
        for i in [*range(20), 1015, 1023, 1024, 1025, 2047, 2048, 2098, 2099]:
            g = np.ones(2100, np.float32)
            g[i] = dtype_bad
            with pytest.raises(FloatingPointError, match="grads: 1 of 2100"):
                opt.step(g)
    assert not w.any()


# ---- zero_grads, grad_scale ----

MEMORY = np.ones((4, 6))

REFUSED_ERASURES = {
    "read-only": (lambda: [np.broadcast_to(np.ones(1), (4,)), np.ones(4)], "grads[0]: read-only, expected a writable"),
    "the same": (lambda: [(g := np.ones(4)), g], "grads[1]: shares memory with grads[0], expected memory of its own"),
    "overlapping": (lambda: [MEMORY[0, :4], MEMORY[0, 2:]], "grads[1]: shares memory with grads[0]"),
    "crossing": (lambda: [MEMORY[:, 1], MEMORY[1, :4]], "grads[1]: shares memory with grads[0]"),
    "folding": (
        lambda: [np.lib.stride_tricks.as_strided(np.ones(4), (4,), (0,)), np.ones(4)],
        "grads[0]: strides (0,) with shape (4,), expected elements that share no memory",
    ),
    "half over each other": (
        lambda: [np.ones(4), np.lib.stride_tricks.as_strided(np.zeros(5), (4,), (4,))],
        "grads[1]: strides (4,) with shape (4,), expected elements that share no memory",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("make", "message"), REFUSED_ERASURES.values(), ids=REFUSED_ERASURES)
def test_gradients_that_cannot_be_set_to_zero(cls, make, message):
    params = [np.ones(4), np.ones(4)]
    opt = cls(params)
    grads = make()
    before = [g.copy() for g in grads]
    with pytest.raises(ValueError) as caught:
        opt.step(grads, zero_grads=True)
    assert message in str(caught.value)
    assert (params[0] == 1).all()
    for g, b in zip(grads, before, strict=True):
        assert_same_bits(g, b)
    opt.step(grads)  # without, they may share what they like


@pytest.mark.parametrize("cls", CLASSES)
def test_only_the_gradients_are_set_to_zero(cls):
    """Columns of one table, some of them gradients."""
    table = np.ones((50, 4))
    opt = cls([np.ones(50), np.ones((25, 1)), np.ones((50, 1))])
    opt.step([table[:, 2], table[::2, 1:2], table[:, :1]], zero_grads=True)
    assert not table[:, 2].any()
    assert not table[:, 0].any()
    assert table[:, 1].tolist() == [0, 1] * 25
    assert (table[:, 3] == 1).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("grad_scale", -1.0, ValueError, "grad_scale: -1.0, expected a number from 0 to 1.79769e"),
        ("grad_scale", np.nan, ValueError, "grad_scale: nan, expected"),
        ("grad_scale", np.inf, ValueError, "grad_scale: inf, expected"),
        ("grad_scale", "1", TypeError, "grad_scale: '1', expected"),
        ("grad_scale", None, TypeError, "grad_scale: None, expected"),
        ("zero_grads", 1, TypeError, "zero_grads: 1, expected False or True"),
        ("zero_grads", None, TypeError, "zero_grads: None, expected False or True"),
    ],
)
def test_refused_arguments_of_a_step(cls, argument, value, error, message):
    w, g = np.ones(3), np.ones(3)
    opt = cls(w)
    with pytest.raises(error) as caught:
        opt.step(g, **{argument: value})
    assert message in str(caught.value)
    assert (w == 1).all()
    assert (g == 1).all()


def test_arguments_of_a_step_of_other_types():
    results = []
    for scale, zero in (0.5, True), (np.float64(0.5), np.True_), (np.array(0.5), True):
        w, g = np.ones(3), np.ones(3)
        rmsfast.RMSProp(w, eps=1.0).step(g, grad_scale=scale, zero_grads=zero)
        results.append((w.tolist(), g.tolist()))
    assert results[0] == results[1] == results[2]
    w, g = np.ones(3), np.ones(3)
    rmsfast.RMSProp(w, eps=1.0).step(g, grad_scale=1)  # an int
    assert w[0] < 1


# ---- State that settings ask for ----


def test_which_state_arrays_there_are(rng):
    for settings, names in [
        ({}, ["square_avg"]),
        ({"momentum": 0.9}, ["square_avg", "momentum_buffer"]),
        ({"centered": True}, ["square_avg", "grad_avg"]),
        ({"centered": True, "momentum": 0.9}, ["square_avg", "grad_avg", "momentum_buffer"]),
        ({"momentum": 0.9, "ema_decay": 0.0}, ["square_avg", "momentum_buffer", "ema"]),
    ]:
        w = np.asfortranarray(fleeting(rng, (3, 5), np.float32))
        opt = rmsfast.RMSProp([w], initial_square_avg=0.5, **settings)
        assert list(opt.state[0]) == ["step", *names]
        assert (opt.state[0]["square_avg"] == 0.5).all()
        for name in names:
            assert opt.state[0][name].strides == w.strides
            start = {"square_avg": np.full_like(w, 0.5), "ema": w}.get(name, np.zeros_like(w))
            assert_same_bits(opt.state[0][name], start)


@pytest.mark.parametrize("cls", CLASSES)
def test_momentum_and_centering_can_begin_and_end_at_any_step(rng, cls):
    w, expected = np.ones(20), np.ones(20)
    opt = cls(w, lr=0.1, beta=0.5, eps=0.1)
    v, m, b = np.zeros(20), np.zeros(20), np.zeros(20)
    for step in range(12):
        mu, centered = [0.0, 0.9, 0.0, 0.5][step // 3], step % 4 > 1
        opt.param_groups[0].update(momentum=mu, centered=centered)
        g = rng.standard_normal(20)
        opt.step(g)
        v = 0.5 * v + 0.5 * g * g
        variance = v
        if centered:
            m = 0.5 * m + 0.5 * g
            variance = np.maximum(v - m * m, 0)
        quotient = g / (np.sqrt(variance) + 0.1)
        if mu:
            b = mu * b + quotient
        expected -= 0.1 * (b if mu else quotient)
        assert w == pytest.approx(expected, rel=1e-12)


def test_a_gradient_may_share_memory_with_no_state():
    opt = rmsfast.RMSProp([np.ones(5), np.ones(5)], momentum=0.9, centered=True, ema_decay=0.9)
    for name in "square_avg", "grad_avg", "momentum_buffer", "ema":
        with pytest.raises(
            ValueError,
            match=rf"grads\[0\]: shares memory with state\[1\]\['{name}'\], expected memory of its own: pass a copy",
        ):
            opt.step([opt.state[1][name], np.ones(5)])


def test_state_dicts_hold_what_the_settings_ask_for(rng):
    w, other = np.ones(6), np.ones(6)
    opt = rmsfast.RMSProp([w], momentum=0.9, centered=True)
    opt.step([rng.standard_normal(6)])
    saved = opt.state_dict()
    assert list(saved["state"][0]) == ["step", "square_avg", "grad_avg", "momentum_buffer"]
    other[:] = w
    plain = rmsfast.RMSProp([other])
    plain.load_state_dict(saved)
    g = rng.standard_normal(6)
    for each in opt, plain:
        each.step([g])
    assert_same_run(plain, [other], opt, [w])

    for name in "grad_avg", "momentum_buffer", "square_avg":
        damaged = opt.state_dict()
        del damaged["state"][0][name]
        with pytest.raises(ValueError, match=rf"state\[0\]: '{name}' is missing, expected it, as"):
            plain.load_state_dict(damaged)
    opt.load_state_dict(rmsfast.RMSProp([np.ones(6)]).state_dict())  # and back: what it lacks is gone
    assert list(opt.state[0]) == ["step", "square_avg"]


# ---- Settings that are refused ----

NUMBERS = ["momentum", "weight_decay", "initial_square_avg"]
SWITCHED = ["nesterov", "centered", "decoupled_weight_decay", "eps_inside_sqrt", "lr_in_momentum", "bias_correction"]
REFUSED_VALUES = [
    *[("ema_decay", value, ValueError, "a number from 0 to 1 or None") for value in (-0.1, 1.5, np.nan, np.inf)],
    *[("ema_decay", value, TypeError, "a number from 0 to 1 or None") for value in ("1", True, 1j, [0.9])],
    *[(name, value, ValueError, "a number ≥ 0") for name in NUMBERS for value in (-1e-9, np.nan, -np.inf)],
    *[(name, value, TypeError, "a number ≥ 0") for name in NUMBERS for value in (None, "1", True, 1j, [1.0])],
    *[(name, value, ValueError, "a number > 0 or None") for name in LIMITS for value in (0, -1.0, np.nan)],
    *[(name, value, TypeError, "a number > 0 or None") for name in LIMITS for value in ("1", False, 1j)],
    *[
        (name, value, TypeError, "False or True")
        for name in [*SWITCHED, "maximize"]
        for value in (0, 1, None, "True", 1.0)
    ],
    *[("nonfinite", value, ValueError, "'propagate' or 'raise' or 'skip'") for value in ("Skip", "")],
    *[("nonfinite", value, TypeError, "'propagate' or 'raise' or 'skip'") for value in (None, True, 0, b"skip")],
]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("name", "value", "error", "expected"), REFUSED_VALUES)
def test_refused_values(cls, name, value, error, expected):
    with pytest.raises(error) as caught:
        cls(np.ones(3), **{name: value})
    assert str(caught.value) == f"{name}: {value!r}, expected {expected}"
    opt = cls(np.ones(3))
    with pytest.raises(error):
        opt.param_groups[0].update({"lr": 0.5, name: value})
    assert opt.lr == 1e-3


def test_switches_and_limits_of_other_types():
    opt = rmsfast.RMSProp(np.ones(3), centered=np.True_, clip_norm=np.float32(0.5), momentum=np.int8(1), nesterov=True)
    group = opt.param_groups[0]
    assert group["centered"] is True
    assert [type(group[name]) for name in ("clip_norm", "momentum")] == [float, float]
    opt.step(np.ones(3))


# ---- Settings without meaning together ----

REFUSED_TOGETHER = [
    ({"nesterov": True}, "nesterov: True with momentum 0, expected momentum > 0"),
    ({"bias_correction": True, "beta": 1.0}, "bias_correction: True with beta 1, expected beta < 1"),
    (
        {"clip_value": 1.0, "clip_norm": 1.0},
        "clip_value and clip_norm: set together, expected one of them at most: set the others to None",
    ),
    ({"clip_norm": 1.0, "clip_global_norm": 2.0}, "clip_norm and clip_global_norm: set together, expected one of them"),
]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("settings", "message"), REFUSED_TOGETHER)
def test_settings_without_meaning_together(cls, settings, message):
    with pytest.raises(ValueError) as caught:
        cls(np.ones(3), **settings)
    assert str(caught.value).startswith(message)
    with pytest.raises(ValueError) as caught:
        cls([{"params": np.ones(3)}, {"params": np.ones(3), **settings}])
    assert str(caught.value).startswith(f"param_groups[1]: {message}")

    opt = cls(np.ones(3))
    before = dict(opt.param_groups[0])
    with pytest.raises(ValueError) as caught:
        opt.param_groups[0].update(settings)
    assert str(caught.value).startswith(message)
    saved = opt.state_dict()
    saved["param_groups"][0] |= settings
    with pytest.raises(ValueError) as caught:
        opt.load_state_dict(saved)
    assert str(caught.value).startswith(f"param_groups[0]: {message}")
    assert dict(opt.param_groups[0])["beta"] == before["beta"]
    assert opt.param_groups[0]["clip_norm"] is None


def test_a_start_that_has_been_made_is_fixed():
    opt = rmsfast.RMSProp(np.ones(3), initial_square_avg=1.0)
    with pytest.raises(
        ValueError, match="initial_square_avg: cannot change once the group is made, expected 1, where its state began"
    ):
        opt.param_groups[0]["initial_square_avg"] = 0.0
    opt.param_groups[0]["initial_square_avg"] = 1
    opt.add_param_group({"params": np.ones(2), "initial_square_avg": 4.0})
    assert opt.state[1]["square_avg"].tolist() == [4.0, 4.0]
