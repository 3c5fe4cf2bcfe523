"""Averages of the parameters: how they move, and `averages`, which puts them in the parameters' place for a while."""

import copy
import ctypes
import pickle

import numpy as np
import pytest
from helpers import CLASSES, assert_same_bits, every_kind_of_number, fleeting

import rmsfast

DTYPES = ["float32", "float64", "complex64", "complex128", "float16", "bfloat16"]


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def raw(array):
    """The bytes of an array, element by element."""
    return np.array(array, order="C").reshape(-1).view(np.uint8)


# ---- How they move ----


@pytest.mark.parametrize("cls", CLASSES)
def test_an_average_by_hand(cls):
    """With beta 0 and eps 0, w moves by 1 at each step: 0, −1, −2, −3."""
    w = np.zeros(1)
    opt = cls(w, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5)
    assert opt.state[0]["ema"].tolist() == [0.0]
    for expected in -0.5, -1.25, -2.125:
        opt.step(np.ones(1))
        assert opt.state[0]["ema"].tolist() == [expected]
    assert w.tolist() == [-3.0]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_limits_come_before_the_average(cls):
    w = np.zeros(1)
    opt = cls(w, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5, clip_weights=0.25)
    opt.step(np.ones(1))
    assert (w.tolist(), opt.state[0]["ema"].tolist()) == ([-0.25], [-0.125])


@pytest.mark.parametrize("cls", CLASSES)
def test_decays_of_0_and_1(rng, cls):
    w, fixed = fleeting(rng, 20, np.float32), fleeting(rng, 20, np.float32)
    start = fixed.copy()
    opt = cls([{"params": w, "ema_decay": 0}, {"params": fixed, "ema_decay": 1}])
    for _ in range(3):
        opt.step([fleeting(rng, 20, np.float32), fleeting(rng, 20, np.float32)])
        assert_same_bits(opt.state[0]["ema"], w)
        assert_same_bits(opt.state[1]["ema"], start)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_average_starts_at_what_the_parameter_is_at_the_first_step(cls):
    """Many a program makes the optimizer first, and then fills the arrays."""
    w, other = np.zeros(2), np.zeros(2)
    opt = cls([w, other], lr=0.0, ema_decay=0.5)
    w[:] = other[:] = 8.0
    assert opt.state_dict()["state"][0]["ema"].tolist() == [8.0, 8.0]
    w[:] = 4.0
    with opt.averages():
        assert (w.tolist(), other.tolist()) == ([4.0, 4.0], [8.0, 8.0])
    w[:] = 2.0
    opt.step([np.ones(2), None])
    assert opt.state[0]["ema"].tolist() == [2.0, 2.0]
    assert opt.state[1]["ema"].tolist() == [8.0, 8.0]
    w[:] = 6.0  # from here on, it moves
    opt.step([np.ones(2), None])
    assert opt.state[0]["ema"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_an_average_in_a_copy_starts_at_what_the_copied_parameter_is_at_the_first_step(cls, clone):
    w = np.zeros(2)
    opt = cls(w, lr=0.0, ema_decay=0.5)
    twin, other = clone((w, opt))
    for array, each in (w, opt), (twin, other):
        array[:] = 4.0
        each.step(np.ones(2))
        assert each.state[0]["ema"].tolist() == [4.0, 4.0]
    w[:] = 6.0
    twin, other = clone((w, opt))  # from here on, it moves in the copy, too
    other.step(np.ones(2))
    assert other.state[0]["ema"].tolist() == [5.0, 5.0]


@pytest.mark.parametrize("cls", CLASSES)
def test_averages_start_one_by_one(cls):
    """That of a parameter that was added, or had no gradient yet, does when it first gets one."""
    w, idle, added = np.zeros(2), np.zeros(2), np.zeros(2)
    opt = cls([w, idle], lr=0.0, ema_decay=0.5)
    opt.step([np.ones(2), None])
    opt.add_param_group({"params": added})
    w[:] = idle[:] = added[:] = 8.0
    assert [entry["ema"].tolist() for entry in opt.state_dict()["state"].values()] == [[0.0] * 2, [8.0] * 2, [8.0] * 2]
    idle[:] = added[:] = 6.0
    opt.step([np.ones(2), None, rmsfast.Rows([0], np.ones(1))])
    added[:] = 2.0
    opt.step([None, np.ones(2), np.ones(2)])
    assert [entry["ema"].tolist() for entry in opt.state.values()] == [[4.0] * 2, [6.0] * 2, [4.0] * 2]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_that_takes_no_average_along_starts_none(cls):
    w = np.zeros(1)
    opt = cls(w, lr=0.0, ema_decay=0.5, nonfinite="skip")
    w[:] = 2.0
    opt.step(np.full(1, np.inf))
    assert opt.skipped_steps == 1
    w[:] = 4.0
    opt.ema_decay = None
    opt.step(np.ones(1))
    w[:] = 6.0
    opt.ema_decay = 0.5
    opt.step(np.ones(1))
    assert opt.state[0]["ema"].tolist() == [6.0]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_average_that_a_state_dict_lacks_starts_at_the_first_step_after_it(cls):
    plain = cls(np.zeros(2))
    plain.step(np.ones(2))
    w = np.zeros(2)
    opt = cls(w, lr=0.0, ema_decay=0.5)
    opt.step(np.ones(2))
    opt.load_state_dict(plain.state_dict(), settings=False)
    w[:] = 8.0
    opt.step(np.ones(2))
    assert opt.state[0]["ema"].tolist() == [8.0, 8.0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_average_that_begins_later_begins_at_the_master(cls, dtype, order):
    """A step of 2⁻¹³ from 1 is lost in the parameter, and kept in its master."""
    dtype = dtype_of(dtype)
    w = np.ones((2, 3), dtype, order=order)
    opt = cls(w, lr=2.0**-13, beta=0.0, eps=1e-30, master_weights=True)
    opt.step(np.array([[1, 0, 0], [0, 0, -1]], np.float32))
    assert (w == 1).all()
    opt.ema_decay = 1.0
    master = [[1 - 2.0**-13, 1.0, 1.0], [1.0, 1.0, 1 + 2.0**-13]]
    assert opt.state_dict()["state"][0]["ema"].tolist() == master
    opt.step(np.ones((2, 3), np.float32))
    assert opt.state[0]["ema"].tolist() == master
    twin = cls(w.copy(order="K"), lr=0.0, master_weights=True, ema_decay=1.0)
    saved = opt.state_dict()
    del saved["state"][0]["ema"]
    twin.load_state_dict(saved, settings=False)
    twin.step(np.ones((2, 3), np.float32))
    assert twin.state[0]["ema"][0, 0] == 1 - 2.0**-12


@pytest.mark.parametrize("cls", CLASSES)
def test_an_average_that_was_loaded_stays_until_it_moves(cls):
    w = np.full(1, 8.0)
    opt = cls(w, lr=0.0, ema_decay=0.5)
    saved = opt.state_dict()
    saved["state"][0]["ema"][:] = 4.0
    opt.load_state_dict(saved)
    assert opt.state_dict()["state"][0]["ema"].tolist() == [4.0]
    opt.step(np.ones(1))
    assert opt.state[0]["ema"].tolist() == [6.0]


@pytest.mark.parametrize("cls", CLASSES)
def test_averages_can_begin_and_end_at_any_step(cls):
    w = np.full(1, 8.0)
    opt = cls(w, lr=1.0, beta=0.0, eps=0.0)
    opt.step(np.ones(1))
    opt.ema_decay = 0.5
    assert opt.state_dict()["state"][0]["ema"].tolist() == [7.0]
    opt.step(np.ones(1))
    assert opt.state[0]["ema"].tolist() == [0.5 * 7 + 0.5 * 6]
    opt.ema_decay = None
    opt.step(np.ones(1))
    assert opt.state[0]["ema"].tolist() == [6.5]
    with pytest.raises(ValueError, match="^averages: no group has an ema_decay, expected it in one at least: RMSProp"):
        opt.averages().__enter__()
    opt.ema_decay = 0.5
    with opt.averages():
        assert w.tolist() == [6.5]
    opt.step(np.ones(1))
    assert opt.state[0]["ema"].tolist() == [0.5 * 6.5 + 0.5 * 4]


@pytest.mark.parametrize("cls", CLASSES)
def test_averages_of_rows_move_with_their_rows(cls):
    w = np.zeros((4, 2))
    opt = cls(w, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5)
    for rows in [0, 2], [2, 2]:
        opt.step(rmsfast.Rows(rows, np.ones((2, 2))))
    assert w[:, 0].tolist() == [-1, 0, -2, 0]
    assert opt.state[0]["ema"][:, 0].tolist() == [-0.5, 0, 0.5 * -0.5 + 0.5 * -2, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_averages_of_masters_are_those_of_a_run_in_float32(rng, dtype):
    dtype = dtype_of(dtype)
    w = fleeting(rng, 1000, np.float32).astype(dtype)
    exact = w.astype(np.float32)
    opt = rmsfast.RMSProp(w, ema_decay=0.9, master_weights=True)
    twin = rmsfast.RMSProp(exact, ema_decay=0.9)
    for _ in range(5):
        g = fleeting(rng, 1000, np.float32)
        opt.step(g)
        twin.step(g)
    assert_same_bits(opt.state[0]["ema"], twin.state[0]["ema"])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_average_of_a_rounded_parameter_is_of_the_number_before_it_is_rounded(cls):
    """A step of 2⁻¹³ from 1 is lost in float16, and kept in the average."""
    w = np.ones(1, np.float16)
    opt = cls(w, lr=2.0**-13, beta=0.0, eps=0.0, ema_decay=0.5)
    opt.step(np.ones(1, np.float16))
    assert w.tolist() == [1.0]
    assert opt.state[0]["ema"].dtype == np.float32
    assert opt.state[0]["ema"].tolist() == [1 - 2.0**-14]


# ---- In the place of the parameters ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("failing", [False, True])
def test_the_parameters_hold_their_averages_and_come_back_bit_for_bit(rng, cls, dtype, failing):
    dtype = dtype_of(dtype)
    real = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    params = {
        "a": fleeting(rng, (5, 3), real).astype(dtype),
        "b": np.asfortranarray(fleeting(rng, (4, 6), real), dtype),
    }
    params["c"] = np.array(1, dtype)
    opt = cls(params, ema_decay=0.5)
    opt.step({name: np.ones_like(w) for name, w in params.items()})
    if dtype.kind != "V":  # NaNs with any bits come back, too
        params["a"].reshape(-1).view(real)[:] = every_kind_of_number(rng, 15 * dtype.itemsize // real.itemsize, real)
    before = {name: w.copy(order="K") for name, w in params.items()}

    class Mine(Exception):
        pass

    try:
        with opt.averages():
            for name, w in params.items():
                assert_same_bits(raw(w), raw(opt.state[name]["ema"].astype(dtype)))
            params["b"][...] = 5
            if failing:
                raise Mine
    except Mine:
        assert failing
    for name, w in params.items():
        assert_same_bits(raw(w), raw(before[name]))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_run_with_evaluations_in_between_has_the_bits_of_one_without(rng, cls, dtype):
    dtype = dtype_of(dtype)
    settings = {"ema_decay": 0.9, "momentum": 0.9, "master_weights": dtype != np.float32}
    w = fleeting(rng, 70, np.float32).astype(dtype)
    twin = w.copy()
    opt, other = cls(w, **settings), cls(twin, **settings)
    for _ in range(4):
        g = fleeting(rng, 70, np.float32)
        opt.step(g.copy())
        other.step(g.copy())
        with opt.averages():
            assert not np.array_equal(raw(w), raw(twin))
        assert_same_bits(raw(w), raw(twin))
    for name, value in other.state[0].items():
        assert_same_bits(raw(opt.state[0][name]), raw(value))


def test_groups_without_averages_stay_as_they_are():
    a, b = np.zeros(1), np.zeros(1)
    opt = rmsfast.RMSProp([{"params": a, "ema_decay": 0.5}, {"params": b}], lr=1.0, beta=0.0, eps=0.0)
    opt.step([np.ones(1), np.ones(1)])
    assert "ema" not in opt.state[1]
    with opt.averages():
        assert (a.tolist(), b.tolist()) == ([-0.5], [-1.0])
        b[:] = 7.0
    assert (a.tolist(), b.tolist()) == ([-1.0], [7.0])


def test_a_mirror_follows():
    w, sent = np.zeros(3, np.float32), np.zeros(3, np.float16)
    opt = rmsfast.RMSProp(w, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5, clip_weights=0.75)
    opt.mirror(sent)
    opt.step(np.ones(3, np.float32))
    assert sent.tolist() == [-0.75] * 3
    with opt.averages():
        assert sent.tolist() == [-0.375] * 3
    assert sent.tolist() == [-0.75] * 3


def inside(opt, path):
    """What is refused inside of `averages`: each call by its name in the message."""
    return {
        "step": lambda: opt.step(np.ones(3)),
        "averages": lambda: opt.averages().__enter__(),
        "a copy of the parameters": lambda: opt.save(path),
        "load": lambda: opt.load_state_dict(opt.state_dict()),
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_refused_inside(tmp_path, cls):
    w = np.zeros(3)
    opt = cls(w, ema_decay=0.5)
    opt.step(np.ones(3))
    path = tmp_path / "run.npz"
    opt.save(path)
    before = w.copy(), opt.state_dict()
    with opt.averages():
        average = w.copy()
        calls = [*inside(opt, path).items(), ("load", lambda: opt.load(path))]
        calls += [("a copy of the parameters", lambda: copy.deepcopy(opt))]
        calls += [("a copy of the parameters", lambda: pickle.dumps(opt))]
        for what, call in calls:
            with pytest.raises(RuntimeError, match=rf"^{what}: inside averages\(\), .* expected after it$"):
                call()
            assert_same_bits(w, average)
    assert_same_bits(w, before[0])
    assert opt.state_dict()["state"][0]["step"] == before[1]["state"][0]["step"] == 1
    assert_same_bits(opt.state[0]["ema"], before[1]["state"][0]["ema"])
    for what, call in inside(opt, path).items():
        if what != "averages":
            call()
    with opt.averages():
        pass


def test_a_parameter_that_was_resized_inside():
    w = np.zeros(3)
    opt = rmsfast.RMSProp(w, ema_decay=0.5)
    with pytest.raises(ValueError, match="^params: resized or changed after it was given"), opt.averages():
        w.resize(5, refcheck=False)
    w.resize(7, refcheck=False)
    other = rmsfast.RMSProp(w, ema_decay=0.5)
    w.resize(9, refcheck=False)
    with pytest.raises(ValueError, match="^params: resized or changed after it was given to the optimizer"):
        other.averages().__enter__()


@pytest.mark.parametrize("cls", CLASSES)
def test_what_can_be_given_back_is_given_back(cls):
    params = {name: np.zeros(3, np.float32) for name in "abcd"}
    sent = {name: np.zeros(3, np.float16) for name in params}
    opt = cls(params, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5)
    opt.mirror(sent)
    opt.step({name: np.ones(3, np.float32) for name in params})
    message = r"^params\['b'\]: .* now read-only float32 of shape \(3,\), .* It did not get its own numbers back$"
    with pytest.raises(ValueError, match=message), opt.averages():
        params["b"].flags.writeable = False
        params["c"].resize(5, refcheck=False)
        sent["d"].flags.writeable = False  # a copy that is not written is no reason to keep its parameter
    assert params["b"].tolist() == [-0.5] * 3
    assert params["c"].tolist() == [-0.5] * 3 + [0, 0]
    for name in "ad":
        assert params[name].tolist() == [-1.0] * 3
    assert (sent["a"].tolist(), sent["d"].tolist()) == ([-1.0] * 3, [-0.5] * 3)


@pytest.mark.parametrize("cls", CLASSES)
def test_after_a_parameter_was_not_given_back_steps_go_on(cls):
    w, other = np.zeros(3), np.zeros(3)
    opt = cls([w, other], lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5)
    opt.step([np.ones(3)] * 2)
    message = r"^params\[0\]: .* read-only .* It did not get its own numbers back$"
    with pytest.raises(ValueError, match=message), opt.averages():
        w.flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\[0\]: .* read-only"):
        opt.step([np.ones(3)] * 2)
    w.flags.writeable = True
    opt.step([np.ones(3)] * 2)
    assert (w.tolist(), other.tolist()) == ([-1.5] * 3, [-2.0] * 3)
    with opt.averages():
        assert other.tolist() == [0.5 * -0.5 + 0.5 * -2.0] * 3


def test_memory_that_its_owner_moved_keeps_no_other_parameter_from_its_own_numbers():
    lent, sent = (ctypes.c_float * 3)(), (ctypes.c_uint16 * 3)()
    params = [np.frombuffer(lent, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)]
    opt = rmsfast.RMSProp(params, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.5)
    opt.mirror([None, np.frombuffer(sent, np.float16), None])
    opt.step([np.ones(3, np.float32)] * 3)
    message = r"^params\[0\]: the c_float_Array_3 .* moved or freed it, .* It did not get its own numbers back$"
    with pytest.raises(ValueError, match=message), opt.averages():
        ctypes.resize(lent, 1_000_000)
        ctypes.resize(sent, 1_000_000)
    assert (params[1].tolist(), params[2].tolist()) == ([-1.0] * 3, [-1.0] * 3)
    with pytest.raises(ValueError, match=r"^params\[0\]: the c_float_Array_3 that owns its memory moved or freed it"):
        opt.step([np.ones(3, np.float32)] * 3)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_dict_inside_has_the_average_and_not_what_the_user_wrote(cls):
    w, late = np.zeros(3), np.zeros(2)
    opt = cls(w, ema_decay=0.5)
    w[:] = 4.0
    with opt.averages():
        w[:] = 99.0
        opt.add_param_group({"params": late})
        late[:] = 5.0
        saved = opt.state_dict()["state"]
        assert (saved[0]["ema"].tolist(), saved[1]["ema"].tolist()) == ([4.0] * 3, [5.0] * 2)
    with opt.averages():
        assert (w.tolist(), late.tolist()) == ([4.0] * 3, [5.0] * 2)


# ---- Files and state dicts ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_that_is_resumed_has_the_same_averages(rng, tmp_path, cls, dtype):
    dtype = dtype_of(dtype)
    w = np.asfortranarray(fleeting(rng, (8, 9), np.float32)).astype(dtype)
    grads = [fleeting(rng, (8, 9), np.float32).astype(dtype) for _ in range(4)]
    opt = cls([w], ema_decay=0.8)
    for g in grads[:2]:
        opt.step([g.copy()])
    path = tmp_path / "run.npz"
    opt.save(path)
    resumed = np.zeros_like(w)
    other = cls([resumed])
    other.load(path)
    assert other.ema_decay == 0.8
    twin = pickle.loads(pickle.dumps(opt))
    for each in opt, other, twin:
        for g in grads[2:]:
            each.step([g.copy()])
    for each in other, twin:
        assert_same_bits(raw(each.state[0]["ema"]), raw(opt.state[0]["ema"]))
        assert_same_bits(raw(each.param_groups[0]["params"][0]), raw(w))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_average_that_a_file_lacks_begins_with_the_parameter_in_it(tmp_path, dtype):
    w = np.full(3, 4.0, dtype)
    rmsfast.RMSProp(w).save(tmp_path / "run.npz")
    other = np.zeros(3, dtype)
    opt = rmsfast.RMSProp(other, ema_decay=0.5)
    opt.step(np.ones(3, dtype))
    opt.load(tmp_path / "run.npz", settings=False)
    assert opt.ema_decay == 0.5
    assert opt.state[0]["ema"].tolist() == [4.0] * 3
    assert opt.state[0]["ema"].dtype == np.float32


def test_state_dicts_with_and_without_averages(rng):
    w = np.ones(4)
    opt = rmsfast.RMSProp([w], ema_decay=0.5)
    opt.step([rng.standard_normal(4)])
    saved = opt.state_dict()
    assert list(saved["state"][0]) == ["step", "square_avg", "ema"]
    lacking = copy.deepcopy(saved)
    del lacking["state"][0]["ema"]
    opt.load_state_dict(lacking)
    assert_same_bits(opt.state[0]["ema"], w)
    opt.load_state_dict(saved)
    assert_same_bits(opt.state[0]["ema"], saved["state"][0]["ema"])
    plain = rmsfast.RMSProp([w.copy()])
    plain.load_state_dict({**saved, "param_groups": plain.state_dict()["param_groups"]})
    assert_same_bits(plain.state[0]["ema"], saved["state"][0]["ema"])  # kept, as a momentum_buffer is
    for wrong, error in (np.zeros(5), ValueError), (np.zeros(4, np.float32), TypeError), ("ema", TypeError):
        damaged = copy.deepcopy(saved)
        damaged["state"][0]["ema"] = wrong
        with pytest.raises(error, match=r"^state\[0\]\['ema'\]: .*, expected"):
            opt.load_state_dict(damaged)
        assert_same_bits(opt.state[0]["ema"], saved["state"][0]["ema"])
