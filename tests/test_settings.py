"""Settings and schedules: what each may be, when it is read, and what a group is."""

import copy
import inspect
import pickle
import re

import numpy as np
import pytest
from helpers import (
    CLASSES,
    GRADS,
    SETTINGS,
    after_one_step,
    assert_same_bits,
    assert_unchanged,
    fleeting,
    textbook,
    trained,
)

import rmsfast
import rmsfast.optimizer
import rmsfast.settings


@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_are_those_of_the_contract(cls):
    signature = inspect.signature(cls).parameters
    assert {name: signature[name].default for name in SETTINGS} == SETTINGS
    assert {name: setting.default for name, setting in rmsfast.settings.SETTINGS.items()} == SETTINGS


def test_groups_have_their_own_settings(rng):
    params = [fleeting(rng, 10, np.float32) for _ in range(4)]
    grads = [fleeting(rng, 10, np.float32) for _ in range(4)]
    settings = [dict(lr=0.1), dict(beta=0.5, eps=0.0), dict(lr=0.2, beta=0.1, eps=1.0)]
    common = dict(lr=0.01, beta=0.9, eps=1e-3)
    expected = [
        after_one_step(w, g, **{**common, **settings[i]}) for w, g, i in zip(params, grads, [0, 0, 1, 2], strict=True)
    ]
    opt = rmsfast.RMSProp([{"params": params[:2], **settings[0]}, {"params": params[2], **settings[1]}], **common)
    opt.add_param_group({"params": params[3:], **settings[2]})
    opt.step(grads)
    for w, e in zip(params, expected, strict=True):
        assert_same_bits(w, e)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.01, 0.2]
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1, 1]


def test_settings_change_between_steps(rng):
    w, v = fleeting(rng, 30, np.float32), np.zeros(30, np.float32)
    actual = w.copy()
    opt = rmsfast.RMSProp(actual)
    for step in range(30):
        lr, beta, eps = 0.1 / (step + 1), 1 - 1 / (step + 1), 10.0**-step
        g = fleeting(rng, 30, np.float32)
        if step % 3 == 0:
            opt.param_groups[0].update(lr=lr, beta=beta, eps=eps)
        elif step % 3 == 1:
            opt.lr = lr
            opt.param_groups[0]["beta"] = np.float64(beta)
            opt.param_groups[0]["eps"] = eps
        else:
            lr, beta, eps = (opt.param_groups[0][name] for name in ("lr", "beta", "eps"))
        opt.step(g)
        textbook(w, v, g, float(lr), beta, eps)
        assert_same_bits(actual, w)
        assert_same_bits(opt.state[0]["square_avg"], v)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_schedule_is_called_once_per_step_with_the_count(cls):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5**step

    params = [np.zeros(3), np.zeros(3), np.zeros(3)]
    opt = cls([{"params": params[:2]}, {"params": params[2], "lr": 1.0}, {"params": np.zeros(2)}], lr=schedule)
    expected = np.zeros(3)
    v = np.zeros(3)
    for step in range(4):
        opt.step(iter([np.ones(3), np.ones(3), np.ones(3), np.ones(2)]))  # an uncommon form asks no second time
        textbook(expected, v, np.ones(3), lr=0.5**step)
    assert asked == [0, 1, 2, 3]
    assert_same_bits(params[0], expected)
    assert opt.param_groups[0]["lr"] is schedule
    assert opt.param_groups[1]["lr"] == 1.0


def test_a_refused_step_asks_no_schedule_and_counts_nothing():
    asked = []
    opt = rmsfast.RMSProp(np.zeros(3), lr=lambda step: asked.append(step) or 0.1)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.zeros(4))
    assert asked == []
    assert opt.state[0]["step"] == 0


def test_lr_is_the_same_number_for_all_groups():
    """It is asked for once: another answer, or none, comes too late."""

    class Moody(float):
        answers = iter([0.5, 0.25])

        def __float__(self):
            return next(self.answers)

    opt = rmsfast.RMSProp([{"params": np.ones(1)}, {"params": np.ones(1)}, {"params": np.ones(1)}])
    opt.lr = Moody()
    assert opt.lr == 0.5


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["lr", "beta", "eps"])
def test_an_array_as_a_setting_is_read_once(cls, name):
    """As the number that it is then; what is written into the array later makes no difference."""
    value, of_a_group = np.array(0.5), np.array(0.5)
    w, twin = [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]
    opt = cls([{"params": w[0]}, {"params": w[1], name: of_a_group}], **{name: value})
    other = cls(twin, **{name: 0.5})
    for assign in [
        lambda: None,
        lambda: opt.param_groups[0].update({name: value}),
        lambda: opt.param_groups[1].__setitem__(name, of_a_group),
        lambda: setattr(opt, "lr", np.array(0.5)) if name == "lr" else None,
    ]:
        value[...] = of_a_group[...] = 0.5
        assign()
        value[...] = of_a_group[...] = 0.25
        assert [type(group[name]) for group in opt.param_groups] == [float, float]
        assert [group[name] for group in opt.param_groups] == [0.5, 0.5]
        for each in opt, other:
            each.step([np.ones(3), np.ones(3)])
        for a, b in zip(w, twin, strict=True):
            assert_same_bits(a, b)


def test_a_schedule_may_read_an_array():
    """That is how a rate is changed in place."""
    rate, w = np.array(0.5), np.zeros(3)
    opt = rmsfast.RMSProp(w, lr=lambda step: rate, beta=0.0, eps=0.0)
    opt.step(np.ones(3))
    rate[...] = 0.25
    opt.step(np.ones(3))
    assert w.tolist() == [-0.75] * 3


# ---- Settings as attributes ----

ANOTHER_VALUE = {
    **{name: 0.5 for name, value in SETTINGS.items() if type(value) is float},
    **{name: True for name, value in SETTINGS.items() if type(value) is bool},
    **{name: 2.0 for name, value in SETTINGS.items() if value is None},
    "nonfinite": "skip",
    "ema_decay": 0.5,
    "state_dtype": "uint8",
    "rounding": "stochastic",
    "seed": 7,
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_an_attribute_that_reads_and_sets_all_groups(cls, name):
    value = ANOTHER_VALUE[name]
    common = {"momentum": 0.25} if name == "nesterov" else {}
    dtype = {"state_dtype": np.float32, "master_weights": np.float16, "rounding": np.float16}.get(name, np.float64)
    opt = cls([{"params": np.zeros(2, dtype)}, {"params": np.zeros(2, dtype), name: value}], **common)
    expected = re.escape(f"{name}: the groups have [{SETTINGS[name]!r}, {value!r}]")
    with pytest.raises(ValueError, match=rf"^{expected}, expected one value: read opt.param_groups\[i\]\['{name}'\]$"):
        getattr(opt, name)
    if name in ("initial_square_avg", "state_dtype", "master_weights"):
        with pytest.raises(ValueError, match=rf"^param_groups\[0\]: {name}: cannot change once"):
            setattr(opt, name, value)
        return
    setattr(opt, name, value)
    assert getattr(opt, name) == value
    assert [group[name] for group in opt.param_groups] == [value, value]
    twin = cls([np.zeros(2, dtype), np.zeros(2, dtype)], **common, **{name: value})
    for each in opt, twin:
        each.step([np.full(2, 3.0, dtype), np.full(2, -3.0, dtype)])
    for i, w in enumerate(twin.param_groups[0]["params"]):
        assert_same_bits(opt.param_groups[i]["params"][0], w)


def test_an_attribute_that_does_not_fit_one_group_changes_none():
    opt = rmsfast.RMSProp([{"params": np.zeros(2), "momentum": 0.5}, {"params": np.zeros(2)}])
    with pytest.raises(ValueError, match=r"^param_groups\[1\]: nesterov: True with momentum 0, expected momentum > 0"):
        opt.nesterov = True
    assert [group["nesterov"] for group in opt.param_groups] == [False, False]
    with pytest.raises(ValueError, match="^beta: 1.5, expected a number from 0 to 1"):
        opt.beta = 1.5
    assert opt.beta == 0.9


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("name", "ours"), {name: ours for name, (ours, _) in rmsfast.settings.FOREIGN.items()}.items())
def test_another_frameworks_name_is_refused_with_ours(cls, name, ours):
    message = rf"{name}: another framework's name, expected {ours}. rmsfast.dialects.(\w+)\({name}=...\) returns that"
    with pytest.raises(TypeError, match=f"^{message}") as caught:
        cls(np.ones(3), **{name: 0.5})
    dialect = re.search(message, str(caught.value))[1]
    assert name in inspect.signature(getattr(rmsfast.dialects, dialect)).parameters
    opt = cls(np.ones(3))
    with pytest.raises(AttributeError, match=f"^{message}"):
        setattr(opt, name, 0.5)
    with pytest.raises(AttributeError, match=f"^{message}"):
        getattr(opt, name)
    assert not hasattr(opt, name)
    with pytest.raises(
        ValueError, match=rf"^param_groups\[0\]\['{name}'\]: another framework's name, expected {ours}\."
    ):
        cls([{"params": np.ones(3), name: 0.5}])


def test_the_names_of_the_contract_are_refused():
    names = {"learning_rate", "alpha", "rho", "decay", "gamma", "gamma1", "epsilon"}
    assert names <= rmsfast.settings.FOREIGN.keys()
    assert not rmsfast.settings.FOREIGN.keys() & SETTINGS.keys()


def test_a_setting_with_a_slip_is_no_new_attribute():
    opt = rmsfast.RMSProp(np.ones(3))
    for name, ours in ("momentun", "momentum"), ("weight_deacy", "weight_decay"), ("centred", "centered"):
        with pytest.raises(AttributeError, match=rf"^{name}: no such setting, .* Did you mean '{ours}'\?$"):
            setattr(opt, name, 0.5)
    with pytest.raises(AttributeError):
        opt.steps = 5
    opt.name = "actor"
    assert opt.name == "actor"
    with pytest.raises(AttributeError, match="'RMSProp' object has no attribute 'title'"):
        _ = opt.title


@pytest.mark.parametrize(
    "name", ["zero_grad", "apply_gradients", "apply", "iterations", "ema", "finalize_variable_values"]
)
def test_methods_of_other_optimizers_are_answered_with_ours(name):
    opt = rmsfast.RMSProp(np.ones(3))
    with pytest.raises(AttributeError, match=rf"^'RMSProp' object has no attribute '{name}': .*opt.step\(grads"):
        getattr(opt, name)


def test_a_dialect_or_a_class_is_no_rate():
    with pytest.raises(
        TypeError, match=r"expected a number ≥ 0: settings of a dialect are keywords, RMSProp\(params, \*\*"
    ):
        rmsfast.RMSProp(np.ones(3), rmsfast.dialects.keras())
    with pytest.raises(TypeError, match=r"expected a number ≥ 0: rmsfast.schedules.cosine\(...\) makes a schedule$"):
        rmsfast.RMSProp(np.ones(3), rmsfast.schedules.cosine)


def test_the_number_of_steps_and_the_current_rate():
    w = np.ones(3)
    opt = rmsfast.RMSProp([w, np.ones(2)], lr=lambda step: 0.5**step)
    assert (opt.steps, opt.current_lr) == (0, 1.0)
    opt.step([np.ones(3), None])
    opt.step([None, np.ones(2)])
    assert (opt.steps, opt.current_lr) == (2, 0.25)
    opt.lr = 0.125
    assert (type(opt.current_lr), opt.current_lr) == (float, 0.125)
    opt.nonfinite = "skip"
    opt.step([np.full(3, np.nan), None])
    assert opt.steps == 2
    opt.lr = lambda step: -1.0
    with pytest.raises(ValueError, match=r"^lr\(2\): -1.0, expected a number ≥ 0"):
        _ = opt.current_lr
    opt.param_groups[0]["lr"] = 0.5
    assert opt.current_lr == 0.5


@pytest.mark.parametrize("cls", CLASSES)
def test_beta_may_have_a_schedule(cls):
    w, v, expected, asked = np.ones(3), np.zeros(3), np.ones(3), []
    opt = cls([w, np.ones(2)], beta=lambda step: asked.append(step) or 1 - 1 / (step + 2))
    for step in range(4):
        opt.step([np.full(3, step + 1.0), None])
        textbook(expected, v, np.full(3, step + 1.0), beta=1 - 1 / (step + 2))
        assert_same_bits(w, expected)
    assert asked == [0, 1, 2, 3]
    for wrong, message in (2.0, r"beta\(4\): 2.0, expected a number from 0 to 1"), (1.0, "bias_correction: True with"):
        opt.param_groups[0].update(beta=lambda step, wrong=wrong: wrong, bias_correction=True)
        with pytest.raises(ValueError, match=f"^{message}"):
            opt.step([np.ones(3), None])
        assert_same_bits(w, expected)
    assert opt.steps == 4


def test_one_function_as_the_schedule_of_lr_and_beta():
    opt = rmsfast.RMSProp(np.ones(2), lr=(schedule := lambda step: 2.0), beta=schedule)
    with pytest.raises(ValueError, match=r"^beta\(0\): 2.0, expected a number from 0 to 1"):
        opt.step(np.ones(2))


def test_a_schedule_that_steps_is_refused():
    w, g = np.zeros(3), np.ones(3)
    opt = rmsfast.RMSProp(w, lr=lambda step: opt.step(g) or 0.1)
    with pytest.raises(RuntimeError, match="from inside one of its own calls"):
        opt.step(g)
    assert_same_bits(w, np.zeros(3))


def test_a_schedule_that_fails_is_asked_again():
    answers = [KeyError("not yet"), "soon", 0.5, 0.25]

    def schedule(step):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    w, expected = np.zeros(3), np.zeros(3)
    opt = rmsfast.RMSProp(w, lr=schedule)
    with pytest.raises(KeyError, match="not yet"):
        opt.step(np.ones(3))
    with pytest.raises(TypeError, match=r"lr\(0\): 'soon', expected a number ≥ 0"):
        opt.step(np.ones(3))
    assert_same_bits(w, expected)
    v = np.zeros(3)
    for lr in 0.5, 0.25:
        opt.step(np.ones(3))
        textbook(expected, v, np.ones(3), lr=lr)
        assert_same_bits(w, expected)


def test_a_schedule_that_changes_the_arrays_is_refused():
    w = np.ones(1000)
    opt = rmsfast.RMSProp([w], lr=lambda step: w.resize(10_000_000, refcheck=False) or 0.1)
    with pytest.raises(ValueError, match=r"params\[0\]: resized or changed"):
        opt.step([np.ones(1000)])
    assert w[0] == 1.0


NOT_ALLOWED = {
    "lr": [-1e-9, -np.inf, np.nan, np.float32(-1), -(10**400), 10**400],
    "beta": [-1e-9, 1.0000001, 2, np.nan, np.inf],
    "eps": [-1e-9, np.nan, -5],
}
NOT_NUMBERS = ["0.1", None, True, np.True_, 1j, [0.1], np.array([0.1]), np.zeros((1, 1)), object(), b"1"]
NOT_NUMBERS += [np.complex128(0.1), np.str_("0.1"), np.bytes_(b"1"), np.timedelta64(1, "s"), float]
NOT_NUMBERS += [np.array(value) for value in ("0.1", "abc", True, None, 1j)]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [(name, value, ValueError) for name, values in NOT_ALLOWED.items() for value in values]
    + [(name, value, TypeError) for name in NOT_ALLOWED for value in NOT_NUMBERS],
)
def test_refused_settings(name, value, error):
    w = np.ones(3)
    for cls in CLASSES:
        with pytest.raises(error, match=f"^{name}: .*expected a number"):
            cls(w, **{name: value})
        with pytest.raises(error, match=rf"^param_groups\[1\]\['{name}'\]: .*expected a number"):
            cls([{"params": np.ones(2)}, {"params": w, name: value}])
    for update in rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update:
        v = np.ones(3)
        with pytest.raises(error, match=f"^{name}: .*expected a number"):
            update(w, v, np.ones(3), **{name: value})
        assert_same_bits(v, np.ones(3))

    opt, params = trained()
    before = [p.copy() for p in params], opt.state_dict()
    with pytest.raises(error, match=f"^{name}: "):
        opt.param_groups[0][name] = value
    with pytest.raises(error, match=f"^{name}: "):
        opt.param_groups[0].update({"lr": 0.5, "beta": 0.5, "eps": 0.5, name: value})
    if name == "lr":
        with pytest.raises(error, match="^lr: "):
            opt.lr = value
        opt.lr = lambda step: value
        with pytest.raises(error, match=r"^lr\(1\): .*expected a number ≥ 0"):
            opt.step(GRADS)
        opt.lr = 1e-3
    assert_unchanged(opt, params, before)


def test_the_keys_of_a_group_are_fixed():
    opt, _ = trained("abc")
    group = opt.param_groups[0]
    assert list(group) == ["params", "param_names", *SETTINGS]
    assert group["param_names"] == ("a", "b", "c")
    with pytest.raises(ValueError, match="'params': cannot change once the group is made, expected settings alone"):
        group["params"] = []
    with pytest.raises(
        ValueError, match=r"momentun: no such setting, expected one of lr, .*, seed. Did you mean 'momentum'\?$"
    ):
        group["momentun"] = 0.9
    with pytest.raises(TypeError, match="'lr': cannot be removed from a group, expected a new value"):
        del group["lr"]
    with pytest.raises(TypeError, match="cannot be removed from a group"):
        group.clear()
    assert list(group) == ["params", "param_names", *SETTINGS]
    with pytest.raises(TypeError):
        opt.state["a"] = {}
    with pytest.raises(TypeError):
        opt.state["a"]["step"] = 5


def test_an_unknown_keyword():
    for cls in CLASSES:
        with pytest.raises(
            TypeError, match=r"^momentun: no such setting, expected one of lr, .* Did you mean 'momentum'\?$"
        ):
            cls(np.ones(3), momentun=0.9)
        with pytest.raises(TypeError, match="^clip: no such setting, expected one of .*, clip_value, clip_norm, "):
            cls(np.ones(3), clip=0.9)


def test_two_groups_are_equal_if_they_are_one():
    first, second = rmsfast.RMSProp([{"params": np.ones(2)}, {"params": np.ones(2)}]).param_groups
    assert (first, second).index(second) == 1


def test_a_schedule_counts_steps_not_gradients():
    """Two parameters trained in turn: the rate falls at every step, also over a save and a load."""
    asked = []
    schedule = lambda step: asked.append(step) or 0.1  # noqa: E731
    opt = rmsfast.RMSProp([np.ones(2), np.ones(2)], lr=schedule)
    for step in range(6):
        if step == 3:
            saved = opt.state_dict()
            opt = rmsfast.RMSProp([np.ones(2), np.ones(2)], lr=schedule)
            opt.load_state_dict(saved)
        opt.step([np.ones(2), None] if step % 2 else [None, np.ones(2)])
    assert asked == [0, 1, 2, 3, 4, 5]


def test_a_method_as_the_schedule_of_two_groups():
    class Schedule:
        calls = 0

        def rate(self, step):
            self.calls += 1
            return 0.1

    schedule = Schedule()
    opt = rmsfast.RMSProp([{"params": np.ones(2), "lr": schedule.rate}, {"params": np.ones(2), "lr": schedule.rate}])
    opt.step([np.ones(2), np.ones(2)])
    assert schedule.calls == 1


def test_a_schedule_that_replaces_itself_rules_to_the_end_of_the_step():
    w, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)

    def schedule(step):
        opt.lr = 0.25
        return 0.5

    opt = rmsfast.RMSProp(w, lr=schedule)
    for lr in 0.5, 0.25:
        opt.step(np.ones(3))
        textbook(expected, v, np.ones(3), lr=lr)
        assert_same_bits(w, expected)


def test_settings_are_read_when_they_changed(monkeypatch):
    reads = []
    read_settings = rmsfast.optimizer.read_settings
    monkeypatch.setattr(rmsfast.optimizer, "read_settings", lambda *args: reads.append(1) or read_settings(*args))
    opt, _ = trained()
    for _ in range(3):
        opt.step(GRADS)
    assert len(reads) == 1
    opt.param_groups[0]["eps"] = 0.5
    for _ in range(3):
        opt.step(GRADS)
    assert len(reads) == 2


def test_a_copy_of_a_group_is_a_dict():
    group = rmsfast.RMSProp({"w": np.ones(3)}).param_groups[0]
    for twin in copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group)), dict(group):
        assert type(twin) is dict
        assert list(twin.items())[1:] == [("param_names", ("w",)), *SETTINGS.items()]
        twin["lr"] = "anything"
    assert group["lr"] == 1e-3
