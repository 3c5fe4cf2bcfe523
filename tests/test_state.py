"""State dicts: their layout, how a run goes on from one, and every refusal."""

import copy

import numpy as np
import pytest
from helpers import (
    CLASSES,
    GRADS,
    SETTINGS,
    assert_same_bits,
    assert_same_state,
    assert_says_all,
    assert_unchanged,
    fleeting,
    trained,
)

import rmsfast


@pytest.mark.parametrize("patience", range(0, 120, 5))
def test_a_setting_whose_name_will_not_be_compared_changes_nothing(patience):
    """After some comparisons, it raises."""

    class Moody(str):
        __slots__ = ("compared",)
        __hash__ = str.__hash__

        def __eq__(self, other):
            self.compared = getattr(self, "compared", 0) + 1
            if self.compared > patience:
                raise RuntimeError("no more")
            return str.__eq__(self, other)

    opt, _ = trained()
    before = opt.state[0]["square_avg"].copy()
    saved = opt.state_dict()
    saved["state"][0]["square_avg"] += 1
    values = {name: value for name, value in saved["param_groups"][0].items() if name != "lr"}
    saved["param_groups"][0] = {**values, Moody("lr"): 0.5}
    try:
        opt.load_state_dict(saved)
    except RuntimeError:
        assert opt.lr == 1e-3
        assert_same_bits(opt.state[0]["square_avg"], before)
    else:
        assert opt.lr == 0.5
        assert_same_bits(opt.state[0]["square_avg"], before + 1)


@pytest.mark.parametrize("names", [None, "abc"])
def test_a_run_goes_on_from_its_state_dict(rng, names):
    opt, params = trained(names)
    opt.param_groups[0].update(lr=0.05, beta=0.8, eps=1e-4)
    saved, weights = opt.state_dict(), [w.copy() for w in params]
    grads = [[fleeting(rng, w.shape, w.dtype) for w in params] for _ in range(5)]
    for g in grads:
        opt.step(g)

    again = rmsfast.RMSProp(weights if names is None else dict(zip(names, weights, strict=True)))
    again.load_state_dict(saved)
    for g in grads:
        again.step(g)
    for a, b in zip(weights, params, strict=True):
        assert_same_bits(a, b)
    assert_same_state(again.state_dict(), opt.state_dict())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_dict_has_what_new_settings_ask_for(cls, tmp_path):
    """As zeros, with which the next step begins."""
    w = np.ones(3)
    opt = cls(w)
    opt.step(np.ones(3))
    opt.param_groups[0].update(momentum=0.5, centered=True)
    saved = opt.state_dict()
    assert list(saved["state"][0]) == ["step", "square_avg", "grad_avg", "momentum_buffer"]
    opt.save(tmp_path / "saved")
    clone = copy.deepcopy(opt)
    again = cls(clone.param_groups[0]["params"][0].copy())
    again.load_state_dict(saved)
    third = cls(np.zeros(3))
    third.load(tmp_path / "saved")
    for each in (opt, clone, again, third):
        each.step(np.ones(3))
        assert_same_bits(each.param_groups[0]["params"][0], w)
        assert_same_state(each.state_dict(), opt.state_dict())


def test_the_layout_of_a_state_dict():
    opt = rmsfast.RMSProp([{"params": {"w": np.zeros(3)}}, {"params": {"b": np.zeros(2)}, "lr": lambda step: 0.1}])
    opt.step({"w": np.ones(3), "b": None})
    saved = opt.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert saved["param_groups"] == [
        {**SETTINGS, "params": ["w"]},
        {**{name: value for name, value in SETTINGS.items() if name != "lr"}, "step": 1, "params": ["b"]},
    ]
    assert {key: entry["step"] for key, entry in saved["state"].items()} == {"w": 1, "b": 0}
    assert list(saved["state"]["w"]) == ["step", "square_avg"]
    assert not np.shares_memory(saved["state"]["w"]["square_avg"], opt.state["w"]["square_avg"])


def test_the_longest_count():
    opt, _ = trained()
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**53
    opt.load_state_dict(saved)
    opt.step(GRADS)
    assert opt.state[0]["step"] == 2**53 + 1


def test_a_schedule_stays_when_a_state_dict_is_loaded():
    rates = []
    opt = rmsfast.RMSProp(np.zeros(3), lr=lambda step: rates.append(step) or 0.1)
    for _ in range(3):
        opt.step(np.ones(3))
    saved = opt.state_dict()
    again = rmsfast.RMSProp(np.zeros(3), lr=lambda step: rates.append(step) or 0.1)
    again.load_state_dict(saved)
    again.step(np.ones(3))
    assert rates == [0, 1, 2, 3]


def test_state_swapped_with_itself():
    """Loading live arrays in another order copies before it writes."""
    opt = rmsfast.RMSProp([np.zeros(3), np.zeros(3)])
    opt.step([np.full(3, 1.0), np.full(3, 2.0)])
    first, second = (opt.state[i]["square_avg"].copy() for i in range(2))
    live = opt.state
    live[0]["square_avg"].flags.writeable = False  # of this view, which is nobody's way to ours
    opt.load_state_dict({**opt.state_dict(), "state": {0: live[1], 1: live[0]}})
    assert_same_bits(opt.state[0]["square_avg"], second)
    assert_same_bits(opt.state[1]["square_avg"], first)


def edit(path, value):
    """A change to a copy of a state dict: set what is at the path, or delete it for a value of `edit`."""

    def change(saved):
        part = saved
        for key in path[:-1]:
            part = part[key]
        if value is edit:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        return saved

    return change


REFUSED_STATES = {
    "no mapping": (lambda saved: [saved], TypeError, "state_dict: list, expected a mapping"),
    "no state": (
        edit(["state"], edit),
        ValueError,
        "state_dict: 'state' is missing, expected it, as state_dict() returns it",
    ),
    "no groups": (edit(["param_groups"], edit), ValueError, "state_dict: 'param_groups' is missing, expected it"),
    "state list": (edit(["state"], []), TypeError, "state_dict['state']: list, expected a mapping"),
    "groups dict": (edit(["param_groups"], {}), TypeError, "state_dict['param_groups']: dict, expected a list"),
    "fewer groups": (edit(["param_groups"], []), ValueError, "param_groups: 0 groups, expected 1, as here"),
    "group": (edit(["param_groups", 0], 5), TypeError, "param_groups[0]: int, expected a mapping"),
    "group params": (
        edit(["param_groups", 0, "params"], edit),
        ValueError,
        "param_groups[0]: 'params' is missing, expected it",
    ),
    "other params": (
        edit(["param_groups", 0, "params"], [0, 2, 1]),
        ValueError,
        "param_groups[0]['params']: [0, 2, 1]",
    ),
    "lr": (edit(["param_groups", 0, "lr"], -1.0), ValueError, "param_groups[0]['lr']: -1.0, expected"),
    "setting": (edit(["param_groups", 0, "foreach"], True), ValueError, "param_groups[0]['foreach']: no such"),
    "entry": (edit(["state", 1], edit), ValueError, "state: 1 is missing, expected it, as"),
    "entry type": (edit(["state", 1], None), TypeError, "state[1]: NoneType, expected a mapping"),
    "unknown entry": (edit(["state", 7], {}), ValueError, "state[7]: no such parameter, expected one of (0, 1, 2)"),
    "unknown name": (
        edit(["state", 1, "exp_avg"], 0),
        ValueError,
        "state[1]['exp_avg']: no such state, expected step, square_avg",
    ),
    "step": (edit(["state", 1, "step"], -1), ValueError, "state[1]['step']: -1, expected a count from 0"),
    "step type": (edit(["state", 1, "step"], "3"), TypeError, "state[1]['step']: '3', expected an integer"),
    "step fraction": (edit(["state", 1, "step"], 1.5), TypeError, "state[1]['step']: 1.5, expected an integer"),
    "step nan": (edit(["state", 1, "step"], np.nan), ValueError, "state[1]['step']: nan, expected a count from 0"),
    "step huge": (edit(["state", 1, "step"], 2**63), ValueError, "state[1]['step']: 9223372036854775808, expected"),
    "step complex": (edit(["state", 1, "step"], np.complex128(3)), TypeError, "expected an integer"),
    "step text": (edit(["state", 1, "step"], np.array("3")), TypeError, "expected an integer"),
    "step too long": (edit(["state", 1, "step"], 10**400), ValueError, "state[1]['step']: 1000"),
    "steps taken": (edit(["param_groups", 0, "step"], -2), ValueError, "param_groups[0]['step']: -2, expected a count"),
    "no step": (edit(["state", 1, "step"], edit), ValueError, "state[1]: 'step' is missing, expected it"),
    "no average": (
        edit(["state", 2, "square_avg"], edit),
        ValueError,
        "state[2]: 'square_avg' is missing, expected it",
    ),
    "list": (edit(["state", 2, "square_avg"], [1.0]), TypeError, "state[2]['square_avg']: list, expected a NumPy"),
    "dtype": (
        edit(["state", 2, "square_avg"], np.ones((3, 4))),
        TypeError,
        "dtype float64, expected float32, as the parameter: .astype(np.float32) converts it",
    ),
    "shape": (
        edit(["state", 2, "square_avg"], np.ones((4, 3), np.float32)),
        ValueError,
        "state[2]['square_avg']: shape (4, 3), expected (3, 4), as the parameter",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED_STATES.values(), ids=REFUSED_STATES)
def test_refused_state_dicts_change_nothing(change, error, message):
    opt, params = trained()
    before = [w.copy() for w in params], opt.state_dict()
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    for entry in saved["state"].values():
        entry["square_avg"] += 1
    with pytest.raises(error) as caught:
        opt.load_state_dict(change(saved))
    assert message in str(caught.value)
    assert_says_all(caught.value)
    assert_unchanged(opt, params, before)


@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_a_state_that_fitted_for_a_moment_changes_nothing():
    """A parameter has another shape while its state is looked at, and its own again when that is taken over."""
    opt, params = trained()
    saved = opt.state_dict()
    for entry in saved["state"].values():
        entry["square_avg"] += 1

    class Reshaping(dict):
        def get(self, key, default=None):
            params[0].shape = (50,) if key == 0 else (5, 10)
            return dict.get(self, key, default)

    saved["state"][0]["square_avg"] = saved["state"][0]["square_avg"].reshape(50)
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(
        ValueError, match=r"state\[0\]\['square_avg'\]: float32 of shape \(50,\), expected float32 of shape \(5, 10\)"
    ):
        opt.load_state_dict({**saved, "state": Reshaping(saved["state"])})
    assert_unchanged(opt, params, before)


def test_step_counts_of_other_types():
    opt, _ = trained()
    saved = opt.state_dict()
    for i, count in enumerate([np.array(4.0, np.float32), np.int64(5), 6.0]):
        saved["state"][i]["step"] = count
    opt.load_state_dict(saved)
    assert [entry["step"] for entry in opt.state.values()] == [4, 5, 6]
