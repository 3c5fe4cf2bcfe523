"""rmsfast.RMSProp as a user holds it: bound gradients, copies and pickles, memory, threads."""

import array
import copy
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import (
    CLASSES,
    assert_same_bits,
    assert_same_state,
    fleeting,
    shared_arrays,
    textbook,
)

import rmsfast


def test_adding_a_group_keeps_the_state(rng):
    params = [fleeting(rng, 10, np.float32) for _ in range(2)]
    grads = [fleeting(rng, 10, np.float32) for _ in range(2)]
    opt = rmsfast.RMSProp(params[0], lr=0.1)
    opt.step(grads[0])
    before = opt.state[0]["square_avg"].copy()
    opt.add_param_group({"params": params[1]})
    assert_same_bits(opt.state[0]["square_avg"], before)
    opt.step(grads)
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]


# ---- Bound gradients ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "form", [list, lambda grads: dict(zip("wb", grads, strict=True)), lambda grads: [grads[0], None]]
)
@shared_arrays
def test_bound_gradients_are_those_of_every_step_without_any(pair, cls, form):
    params, grads = pair
    twins = [w.copy() for w in params]
    named = isinstance(form(grads), dict)
    opt, twin = (cls(dict(zip("wb", each, strict=True)) if named else each) for each in (params, twins))
    opt.bind(form(grads))
    for step in range(6):
        for g in grads:
            g += 0.5 * step
        arguments = [{}, {"grad_scale": np.float64(0.5)}, {"zero_grads": True}][step % 3]
        copies = form([g.copy() for g in grads])
        opt.step(**arguments)
        twin.step(copies, **arguments)
        assert (grads[0] == 0).all() or step % 3 != 2
    for w, t in zip(params, twins, strict=True):
        assert_same_bits(w, t)
    assert [entry["step"] for entry in opt.state.values()] == [entry["step"] for entry in twin.state.values()]


def test_a_step_with_gradients_of_its_own_leaves_the_bound_ones():
    w, g, other = np.zeros(2), np.ones(2), np.full(2, 3.0)
    opt = rmsfast.RMSProp(w, lr=1.0, beta=1.0, eps=1.0)
    opt.bind(g)
    opt.step(other)
    opt.step()
    assert w.tolist() == [-4.0, -4.0]
    opt.bind(None)
    with pytest.raises(
        TypeError, match=r"grads: None, expected gradients: opt.step\(grads\), or opt.bind\(grads\) once"
    ):
        opt.step()


@pytest.mark.parametrize("cls", CLASSES)
def test_bound_gradients_are_checked_when_they_are_bound_and_at_every_step(cls):
    w, other = np.ones(1000), np.ones(3)
    g = np.ones(1000)
    opt = cls([w, other])
    for grads, error, message in [
        ([np.ones(999), None], ValueError, r"grads\[0\]: shape \(999,\), expected \(1000,\)"),
        ([w, None], ValueError, r"grads\[0\]: shares memory with params\[0\]"),
        ([g], ValueError, "grads: 1 gradient, expected 2"),
        (
            [rmsfast.Rows([0], np.ones(1)), None],
            TypeError,
            r"grads\[0\]: rows, expected an array that is filled in place: give Rows to each step",
        ),
    ]:
        with pytest.raises(error, match=message):
            opt.bind(grads)
    with pytest.raises(TypeError, match="grads: None"):
        opt.step()

    opt.bind([g, np.ones(3)])
    opt.step()
    before = w.copy()
    g.resize(2000, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\]: shape \(2000,\), expected \(1000,\)"):
        opt.step()
    g.resize(1_000_000, refcheck=False)
    _taken = [np.ones(1000) for _ in range(50)]  # among them, where it was
    g.resize(1000, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\]: resized or moved after it was bound"):
        opt.step()
    assert_same_bits(w, before)
    opt.add_param_group({"params": np.ones(2)})
    with pytest.raises(TypeError, match="grads: None"):
        opt.step()


def test_bound_gradients_stay_alive():
    opt = rmsfast.RMSProp(w := np.zeros(10_000), lr=1.0, beta=1.0, eps=1.0)
    opt.bind(array.array("d", [2.0] * 10_000))
    opt.step()
    assert (w == -2).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.resize(1_000_000, refcheck=False),
        lambda w: w.resize(2, refcheck=False),
        lambda w: setattr(w, "shape", (2, 500)),
        lambda w: setattr(w, "dtype", np.float32),
        lambda w: setattr(w, "dtype", np.int64),
        lambda w: setattr(w, "dtype", ">f8"),
        lambda w: w.setflags(write=False),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_a_parameter_that_changed_is_refused(change):
    other, w = np.ones(1000), np.ones(1000)
    opt = rmsfast.RMSProp([other, w])
    change(w)
    before = w.tobytes()
    with pytest.raises(ValueError, match=r"params\[1\]: resized or changed after it was given .* shape \(1000,\)"):
        opt.step([np.ones(1000), np.ones(1000)])
    with pytest.raises(ValueError, match=r"params\[1\]: resized or changed after it was given .* shape \(1000,\)"):
        opt.add_param_group({"params": np.ones(3)})  # else the state would not fit the parameter, as the plan sees it
    assert len(opt.param_groups) == 1
    assert_same_bits(other, np.ones(1000))
    assert w.tobytes() == before
    assert opt.state[0]["step"] == 0


# ---- Copies and pickles ----


def identity_schedule(step):
    return 0.1 / (1 + step)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("cls", CLASSES)
def test_copies_and_pickles_go_on_alone(rng, clone, cls):
    for params in (
        np.ones((3, 4), order="F"),
        [np.ones(3), np.ones(4)],
        {"w": np.ones(3)},
        [{"params": {"a": np.ones(3)}, "beta": 0.5}, {"params": {"b": np.ones(4, np.float32)}}],
    ):
        opt = cls(params, lr=identity_schedule, num_threads=2)
        arrays = [w for group in opt.param_groups for w in group["params"]]
        opt.step([fleeting(rng, w.shape, w.dtype) for w in arrays])
        opt.param_groups[0]["eps"] = 0.5
        twin = clone(opt)
        assert type(twin) is cls
        assert repr(twin) == repr(opt)
        assert_same_state(twin.state_dict(), opt.state_dict())
        twins = [w for group in twin.param_groups for w in group["params"]]
        grads = [fleeting(rng, w.shape, w.dtype) for w in arrays]
        before = [w.copy() for w in arrays]
        twin.step(grads)
        for w, b in zip(arrays, before, strict=True):
            assert_same_bits(w, b)
        opt.step(grads)
        for w, t in zip(arrays, twins, strict=True):
            assert_same_bits(t, w)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_taken_as_many_steps(clone):
    """More than any of the parameters, for a schedule that is set later."""
    opt = rmsfast.RMSProp([np.ones(2), np.ones(2)])
    opt.step([np.ones(2), None])
    opt.step([None, np.ones(2)])
    for each in (opt, clone(opt)):
        asked = []
        each.lr = lambda step, asked=asked: asked.append(step) or 0.1
        each.step([np.ones(2), None])
        assert asked == [2]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_of_groups_whose_settings_need_each_other(clone):
    """The constructor's alone would have no meaning."""
    opt = rmsfast.RMSProp([{"params": [np.ones(3)], "momentum": 0.9}], nesterov=True)
    opt.add_param_group({"params": np.ones(2), "nesterov": False, "initial_square_avg": 4.0})
    twin = clone(opt)
    assert [group.settings() for group in twin.param_groups] == [group.settings() for group in opt.param_groups]
    with pytest.raises(ValueError, match="nesterov: True with momentum 0"):
        twin.add_param_group({"params": np.ones(1)})  # its defaults, too

    opt = rmsfast.RMSProp(np.ones(3), momentum=0.9, nesterov=True)
    opt.param_groups[0].update(momentum=0, nesterov=False)
    twin = clone(opt)
    twin.step(np.ones(3))  # one array, still
    assert twin.param_groups[0].settings() == opt.param_groups[0].settings()


def test_many_groups_are_made_at_once():
    """One line for all groups, not one after another: otherwise this takes minutes."""
    params = [np.ones(1) for _ in range(3000)]
    opt = rmsfast.RMSProp([{"params": w, "lr": 1 / (1 + i)} for i, w in enumerate(params)], eps=0.0)
    opt.step([np.ones(1)] * 3000)
    assert params[2999][0] == pytest.approx(1 - 1 / 3000 / 0.1**0.5)


class Tagged(rmsfast.RMSProp):
    pass


def test_copies_of_a_subclass_keep_its_attributes():
    opt = Tagged(np.ones(3))
    opt.tag = ["anything"]
    for twin in copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        assert type(twin) is Tagged
        assert twin.tag == ["anything"]


def test_a_shallow_copy_shares_parameters_and_state():
    w, v, expected = np.ones(3), np.zeros(3), np.ones(3)
    opt = rmsfast.RMSProp(w)
    for each in opt, copy.copy(opt):
        each.step(np.ones(3))
        textbook(expected, v, np.ones(3))
    assert_same_bits(w, expected)
    assert opt.state[0]["step"] == 2


class Stepping(np.ndarray):
    """An array that is trained on while it is copied or pickled, as by another thread."""

    def __deepcopy__(self, memo):
        self.step()
        return np.array(self)

    def __reduce__(self):
        self.step()
        return np.array, (np.array(self),)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("form", [list, lambda params: params[0]])
def test_copies_have_parameters_and_state_of_one_moment(clone, form):
    w = np.zeros(3).view(Stepping)
    opt = rmsfast.RMSProp(form([w]), lr=1.0, beta=0.0, eps=0.0)
    w.step = lambda: opt.step(form([np.ones(3)]))
    for steps in range(3):
        twin = clone(opt)
        assert twin.state[0]["step"] == steps
        assert (twin.param_groups[0]["params"][0] == -steps).all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_keep_a_model_and_its_optimizer_together(clone):
    model = {"w": np.ones(3)}
    twin_model, twin = clone((model, rmsfast.RMSProp(model)))
    twin.step({"w": np.ones(3)})
    assert twin_model["w"][0] != 1.0
    assert model["w"][0] == 1.0


def test_repr_of_one_array_is_one_line():
    opt = rmsfast.RMSProp(np.ones((300, 40), np.float32), momentum=0.5)
    assert repr(opt) == (
        "RMSProp(float32 (300, 40), 12,000 elements, 0 steps, 96.0 kB of state, lr=0.001, momentum=0.5)"
    )
    opt.step(np.ones((300, 40), np.float32))
    assert ", 1 step, " in repr(opt)
    assert (
        repr(rmsfast.reference.RMSProp(np.ones(())))
        == "RMSProp(float64 (), 1 element, 0 steps, 8 B of state, lr=0.001)"
    )


def test_repr_of_groups_has_their_parameters():
    opt = rmsfast.RMSProp([{"params": [np.ones((2, 3)), np.ones(4)]}, {"params": np.ones(5), "lr": 0.5, "beta": 0.5}])
    opt.lr = rmsfast.schedules.linear(0.5, 10)
    opt.step([np.ones((2, 3)), None, None])
    assert repr(opt) == (
        "RMSProp(1 step, 120 B of state\n"
        "    2 arrays, 10 elements, lr=linear(start=0.5, steps=10, end=0.0)\n"
        "        0  float64 (2, 3)\n"
        "        1  float64 (4,)\n"
        "    1 array, 5 elements, lr=linear(start=0.5, steps=10, end=0.0), beta=0.5\n"
        "        2  float64 (5,)\n"
        ")"
    )


def test_repr_of_many_parameters_has_a_few_of_them():
    layers = {f"layer{i}": {"W": np.ones((i + 1, 10)), "b": np.ones(10, np.float32)} for i in range(12)}
    lines = repr(rmsfast.RMSProp(layers, nonfinite="skip")).splitlines()
    assert lines[1] == "    24 arrays, 900 elements, lr=0.001, nonfinite='skip'"
    assert lines[2:4] == ["        layer0.W  float64 (1, 10)", "        layer0.b  float32 (10,)"]
    assert lines[-2:] == ["        … and 16 more", ")"]
    assert len(lines) == 12
    ten = {name: np.ones(2) for name in "abcdefghij"}
    assert "more" not in repr(rmsfast.RMSProp(ten))
    assert repr(rmsfast.RMSProp({**ten, "k": np.ones(2)})).splitlines()[-2] == "        … and 3 more"


@pytest.mark.parametrize(("n", "text"), [(124, "992 B"), (125, "1.0 kB"), (10**6, "8.0 MB"), (10**9, "8.0 GB")])
def test_memory_as_text(n, text):
    from rmsfast.summary import as_memory

    assert as_memory(8 * n) == text


# ---- Memory and threads ----


def test_state_lies_as_the_parameter_does(rng):
    for shape, order in [((3, 4), "C"), ((3, 4), "F"), ((), "C"), ((0, 3), "C"), ((7,), "C")]:
        w = np.asarray(fleeting(rng, shape, np.float32), order=order)
        square_avg = rmsfast.RMSProp([w]).state[0]["square_avg"]
        assert square_avg.strides == w.strides or w.size == 0
        if w.size > 0:
            difference = square_avg.__array_interface__["data"][0] - w.__array_interface__["data"][0]
            assert difference % 64 == 0


@pytest.mark.parametrize("shapes", [[1 << 20], [1000] * 200])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.thread_unsafe(reason="tracemalloc counts the whole process")
def test_a_step_allocates_nothing(shapes, named):
    params = {f"w{i}": np.ones(n, np.float32) for i, n in enumerate(shapes)}
    grads = {name: np.full_like(w, 0.1) for name, w in params.items()}
    opt = rmsfast.RMSProp(params if named else list(params.values()))
    grads = grads if named else list(grads.values())
    opt.step(grads)
    tracemalloc.start()
    try:
        opt.step(grads)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(1000):
            opt.step(grads)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1000  # the loop's own integer, the frame of `step`; less than any array


def test_arrays_are_released():
    """Without the help of the garbage collector: state can be most of a program's memory."""
    import weakref

    class Array(np.ndarray):
        pass

    w, g = np.ones(10).view(Array), np.ones(10)
    alive = weakref.ref(w)
    references = sys.getrefcount(g)
    opt = rmsfast.RMSProp([w])
    opt.step([g])
    opt.add_param_group({"params": np.ones(4)})
    with pytest.raises(ValueError, match="shape"):
        opt.step([g, np.ones(5)])
    assert sys.getrefcount(g) == references
    del w, opt
    assert alive() is None


def test_threads_that_share_an_optimizer_are_serialized(rng):
    n, steps, workers = 40_000, 50, 4
    w, v = np.ones(n, np.float32), np.zeros(n, np.float32)
    g = fleeting(rng, n, np.float32)
    actual = w.copy()
    opt = rmsfast.RMSProp(actual)
    threads = [threading.Thread(target=lambda: [opt.step(g) for _ in range(steps)]) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(steps * workers):
        textbook(w, v, g)
    assert opt.state[0]["step"] == steps * workers
    assert_same_bits(actual, w)
    assert_same_bits(opt.state[0]["square_avg"], v)


@pytest.mark.parametrize(("n", "released"), [(100, False), (1 << 21, True)])
@pytest.mark.thread_unsafe(reason="sets the interval in which all threads take turns")
def test_the_gil_is_released_in_long_steps_only(n, released):
    """Without any switch but an explicit one, another thread gets to run during a step if the step lets it."""
    w, g = np.ones(n, np.float32), np.ones(n, np.float32)
    opt = rmsfast.RMSProp(w, num_threads=1)
    opt.step(g)
    go, ran = threading.Event(), []
    thread = threading.Thread(target=lambda: go.wait() and ran.append(True))
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        go.set()
        for _ in range(20):
            opt.step(g)
        during = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert during == released


def test_import_loads_nothing_heavy():
    """NumPy, and no module that NumPy has not loaded already."""
    program = "import sys, numpy; before = set(sys.modules); import rmsfast; print(*(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    foreign = {name for name in output.split() if not name.startswith(("rmsfast", "_cython_", "cython_runtime"))}
    assert foreign == set()
