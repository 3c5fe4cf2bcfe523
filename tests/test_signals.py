"""A signal whose handler raises, as Ctrl-C does, takes effect before a call or after it: nothing is half done."""

import copy
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import rmsfast

pytestmark = pytest.mark.thread_unsafe(reason="signals are the main thread's")


def tracing(test):
    """Mark a test that interrupts calls at each of Python's instructions. Nobody closes a file just opened."""
    test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
    return pytest.mark.skipif(sys.gettrace() is not None, reason="something traces already, as coverage does")(test)


# How many of Python's instructions lie between two tries: some by default, and -m slow tries each.
STRIDES = [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
SHAPES = [(300,), (2, 3), (0,)]
PACKAGE = str(Path(rmsfast.__file__).parent)


def make(value=0.0, **settings):
    """An optimizer whose steps take 1 from each number where gradients are positive."""
    params = [np.full(shape, value) for shape in SHAPES]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    return rmsfast.RMSProp(groups, **{"lr": 1.0, "beta": 0.0, "eps": 0.0, **settings}), params


def ones():
    return [np.ones(shape) for shape in SHAPES]


def everything(opt):
    """All that a call may change, as bytes and numbers."""
    return (
        [w.tobytes() for group in opt.param_groups for w in group["params"]],
        [(entry["step"], {k: a.tobytes() for k, a in entry.items() if k != "step"}) for entry in opt.state.values()],
        [group.settings() for group in opt.param_groups],
        opt.skipped_steps,
    )


def interrupted_at(call, n):
    """Run a call and raise KeyboardInterrupt before the n-th instruction of Python that it runs in the package.

    Python runs the handlers of signals between instructions, on the main thread. Returns whether there were so many.
    """
    left = n

    def count(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return count

    def calls():
        """A generator, which has a stack of exceptions of its own: a handler that is cut off leaves its there."""
        yield call()

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # or CPython 3.12 begins to look at them too late
    sys.settrace(count)
    try:
        next(calls())
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def other_state():
    opt, _ = make()
    opt.step([3.0 * g for g in ones()])
    opt.param_groups[0].update(lr=0.5, eps=0.25)
    opt.param_groups[1].update(lr=0.125, eps=0.5)
    return opt.state_dict()


STATE = other_state()

CALLS = {
    "step": lambda opt, path: opt.step(ones()),
    "step and zero the gradients": lambda opt, path: opt.step(ones(), zero_grads=True),
    "step that is skipped": lambda opt, path: opt.step([np.full(shape, np.nan) for shape in SHAPES]),
    "bound step": lambda opt, path: (opt.bind(ones()), opt.step()),
    "load_state_dict": lambda opt, path: opt.load_state_dict(STATE),
    "load": lambda opt, path: opt.load(path),
    "add_param_group": lambda opt, path: opt.add_param_group({"params": [np.ones(3)]}),
    "a setting": lambda opt, path: setattr(opt, "lr", 0.5),
    "settings": lambda opt, path: opt.param_groups[0].update(lr=0.5, momentum=0.5, nesterov=True),
}


@tracing
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_interrupted_anywhere_was_made_or_not(tmp_path, call, stride):
    """And later steps are what they would have been."""
    path = tmp_path / "run.npz"
    saved, _ = make(value=5.0, lr=2.0, nonfinite="skip")
    saved.step([2.0 * g for g in ones()])
    saved.step([np.nan * g for g in ones()])
    saved.save(path)

    def begin():
        opt, _ = make(clip_global_norm=1e9, nonfinite="skip")
        opt.step(ones())
        return opt

    opt = begin()
    outcomes = [everything(opt)]
    call(opt, path)
    outcomes.append(everything(opt))
    ends = []
    for state in range(2):
        opt = begin()
        if state:
            call(opt, path)
        opt.step([np.ones_like(w) for group in opt.param_groups for w in group["params"]])
        ends.append(everything(opt))
    n = 1
    while True:
        opt = begin()
        more = interrupted_at(lambda opt=opt: call(opt, path), n)
        assert sys.exception() is None
        made = outcomes.index(everything(opt))
        opt.step([np.ones_like(w) for group in opt.param_groups for w in group["params"]])
        assert everything(opt) == ends[made]
        if not more:
            break
        n += stride
    assert made == 1
    assert n > 5


@tracing
def test_a_save_interrupted_anywhere_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "run.npz"
    n, more, old = 0, True, 0
    while more:
        n += 1
        opt, _ = make()
        opt.save(path)
        opt.step(ones())
        more = interrupted_at(lambda opt=opt: opt.save(path), n)
        twin, params = make()
        twin.load(path)
        step = twin.state[0]["step"]
        assert all((w == -step).all() for w in params)
        old += step == 0
        names = {file.name for file in folder.iterdir()} - {"run.npz"}
        assert all(name.startswith(".rmsfast.") and name.endswith(".tmp") for name in names)
    assert 50 < old < n


@tracing
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, pickle.dumps])
def test_an_interrupted_copy_takes_nothing_away(clone, stride):
    opt, _ = make()
    opt.step(ones())
    before, n = everything(opt), 1
    while interrupted_at(lambda: clone(opt), n):
        n += stride
        assert everything(opt) == before
    opt.step(ones())
    assert [entry["step"] for entry in opt.state.values()] == [2] * len(SHAPES)


@tracing
def test_averages_interrupted_anywhere_give_the_parameters_back():
    n = 1
    while True:
        opt, params = make(ema_decay=0.5)
        opt.step(ones())
        before = everything(opt)

        def evaluate(opt=opt, params=params):
            with opt.averages():
                assert (params[0] == -0.5).all()

        more = interrupted_at(evaluate, n)
        assert everything(opt) == before
        opt.step([np.ones_like(w) for w in params])
        assert (params[0] == -2).all()
        if not more:
            break
        n += 1
    assert n > 5


@pytest.mark.skipif(os.name != "posix", reason="timers of POSIX")
def test_a_signal_in_a_long_step_takes_effect_right_after_it():
    w, g = np.zeros(8_000_000), np.ones(8_000_000)
    opt = rmsfast.RMSProp([w], lr=1.0, beta=0.0, eps=0.0, num_threads=1)
    opt.step([g])

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            while True:
                opt.step([g])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    steps = opt.state[0]["step"]
    assert 1 <= steps <= 3
    assert (w == -steps).all()
