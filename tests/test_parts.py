"""What optimizers on parts of parameters need of the kernel: looking without a step, random bits, factors, measures."""

import numpy as np
import pytest
from helpers import assert_same_bits, assert_says_all, fleeting

import rmsfast
from rmsfast import reference
from rmsfast._core import steps
from rmsfast._core.measures import BLOCK, measure
from rmsfast.arguments import as_group
from rmsfast.settings import SETTINGS, read_settings


def front_without_state(params):
    changed = steps.Flag()
    front = steps.ArrayFront(changed, read_settings, None, None, stateless=True)
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    front.add_groups([as_group({"params": params}, 0, 0, False, defaults, changed)], False)
    return front


def test_a_front_without_state_looks_at_gradients_and_changes_nothing(rng):
    params = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    before = [w.copy() for w in params]
    front = front_without_state(params)
    assert front.check([np.ones((3, 4)), None], False)
    assert not front.check([[1.0], None], False)
    for w, old in zip(params, before, strict=True):
        assert_same_bits(w, old)
    assert [arrays for _, _, arrays in front.state()[1]] == [{}, {}]
    assert front.steps == 0


def test_a_change_while_the_settings_are_read_is_read_by_the_next_step():
    changed, held = steps.Flag(), {"lr": 0.5}
    reads = []

    def read(groups, taken):
        settings = {**groups[0].settings(), **held}
        if taken == 0:
            changed.put([held], {"lr": 0.25})  # as another thread may, too late for this reader
        reads.append(settings["lr"])
        return False, [settings]

    front = steps.ArrayFront(changed, read, None, None)
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    front.add_groups([as_group({"params": [np.zeros(3)]}, 0, 0, False, defaults, changed)], False)
    for _ in range(3):
        assert front.step([np.ones(3)], 1.0, False)
    assert reads == [0.5, 0.25]
    assert not changed.up


def test_a_front_without_state_takes_no_step(rng):
    w = rng.standard_normal(5)
    front = front_without_state([w])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="parameters without state"):
            front.step([np.ones(5)], 1.0, False)


@pytest.mark.parametrize("case", ["shape", "dtype", "shared", "erased", "moved"])
def test_a_front_without_state_refuses_what_a_step_would(rng, case):
    w, b = rng.standard_normal((3, 4)), rng.standard_normal(5)
    front = front_without_state([w, b])
    g = np.ones((3, 4))
    given = {
        "shape": [np.ones((4, 3)), None],
        "dtype": [g.astype(np.float32), None],
        "shared": [w[:], None],
        "erased": [np.broadcast_to(1.0, (3, 4)), None],
        "moved": [g, None],
    }[case]
    if case == "moved":
        b.flags.writeable = False
    with pytest.raises((TypeError, ValueError)) as caught:
        front.check(given, case == "erased")
    assert_says_all(caught.value)


@pytest.mark.parametrize("settings", [{"state_dtype": "bfloat16", "momentum": 0.9}, {"state_dtype": "uint8"}])
def test_the_random_bits_of_a_part_are_those_of_the_whole(rng, settings):
    w = fleeting(rng, 1000, np.float32)
    parts = [w[:448].copy(), w[448:].copy()]
    whole = rmsfast.RMSProp([np.ones(3, np.float32), w], seed=7, **settings)
    of_parts = rmsfast.RMSProp(parts, seed=7, **settings)
    of_parts._front.place([(1, 0), (1, 448)])
    for _ in range(3):
        g = fleeting(rng, 1000, np.float32)
        whole.step([np.ones(3, np.float32), g])
        of_parts.step([g[:448], g[448:]])
    assert_same_bits(np.concatenate(parts), w)
    kept = [of_parts.state[i]["square_avg"] for i in range(2)]
    assert_same_bits(np.concatenate(kept), whole.state[1]["square_avg"])


def test_a_part_begins_where_random_bits_do():
    opt = rmsfast.RMSProp(np.ones(100, np.float32), state_dtype="bfloat16")
    with pytest.raises(ValueError, match="multiple of 64"):
        opt._front.place([(0, 32)])


def test_factors_take_the_place_of_norms(rng):
    w = [fleeting(rng, 700, np.float64) for _ in range(2)]
    expected = [x.copy() for x in w]
    g = [fleeting(rng, 700, np.float64) for _ in range(2)]
    opt = rmsfast.RMSProp(w, clip_norm=0.5)
    plain = rmsfast.RMSProp(expected)
    opt._front.clip([0.25, 0.5])
    opt.step(g)
    plain.step([0.25 * g[0], 0.5 * g[1]])
    for a, b in zip(w, expected, strict=True):
        assert_same_bits(a, b)
    opt._front.clip(None)
    opt.step(g)  # measures again
    plain.step([x * min(1, 0.5 / reference.norm([x])) for x in g])
    for a, b in zip(w, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_are_measured_as_the_reference_says(rng, dtype, threads):
    g = fleeting(rng, 10 * BLOCK + 77, dtype)
    squares = np.zeros(11)
    assert measure(g, 0.3, 1.0, squares, threads) == 0
    scaled = g * dtype(0.3)
    expected = [reference.sum_of_squares([scaled[k : k + BLOCK]], 1.0) for k in range(0, len(g), BLOCK)]
    assert_same_bits(squares, np.array(expected))
    g[[3, 5000]] = np.nan, np.inf
    assert measure(g, 0.3, 1.0, squares, threads) == 2


def test_measure_refuses_what_it_cannot_read():
    with pytest.raises(TypeError, match="float16"):
        measure(np.zeros(5, np.float16), 1.0, 1.0, np.zeros(1))
    with pytest.raises(TypeError, match="contiguous"):
        measure(np.zeros(10)[::2], 1.0, 1.0, np.zeros(1))
    with pytest.raises(ValueError, match="squares"):
        measure(np.zeros(5), 1.0, 1.0, np.zeros(2))
    assert measure(np.zeros(0), 1.0, 1.0, np.zeros(0)) == 0
