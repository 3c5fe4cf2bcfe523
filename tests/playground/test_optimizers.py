"""The playground's JavaScript in Node: RMSProp has the bits of rmsfast.reference; dialects, landscapes, addresses."""

import inspect
import math
from fractions import Fraction
from urllib.parse import quote

import numpy as np
import pytest
from helpers import assert_same_bits
from playground.pages import FOLDER, ask, decode, encode

import rmsfast
from rmsfast import dialects
from rmsfast.settings import SETTINGS

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="docs/playground is not here"),
    pytest.mark.thread_unsafe(reason="Node does the work: four times the same would only take longer"),
]

FORMATS = {"state_dtype", "master_weights", "rounding", "seed"}  # JavaScript's numbers are doubles
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e-162, 1e154, -1e200, 1.7e308]


def draw_settings(rng):
    """Settings at random: each is often at its default, and all of them meet each other."""
    often = rng.random() < 0.3  # some cases have nearly everything
    has = lambda share: rng.random() < (0.7 if often else share)  # noqa: E731
    settings = {"lr": float(10 ** rng.uniform(-4, 1))}
    settings["beta"] = float(rng.choice([0.0, 0.5, 0.9, 0.99, 0.999, 1.0, rng.random(), 1 - 10 ** rng.uniform(-9, 0)]))
    settings["eps"] = float(rng.choice([0.0, 1e-300, 1e-10, 1e-8, 1e-6, 1e-2, 1.0, 10 ** rng.uniform(-12, 2)]))
    if has(0.4):
        settings["momentum"] = float(rng.choice([0.5, 0.9, 1.0, 1.5, rng.random()]))
        settings["nesterov"] = has(0.4)
    for name in ["centered", "eps_inside_sqrt", "lr_in_momentum", "maximize", "decoupled_weight_decay"]:
        settings[name] = bool(has(0.4))
    settings["bias_correction"] = bool(has(0.4) and settings["beta"] < 1)
    if has(0.3):
        settings["weight_decay"] = float(rng.choice([1e-4, 0.1, rng.random()]))
    if has(0.3):
        settings["initial_square_avg"] = float(rng.choice([1.0, 0.1, 10 ** rng.uniform(-6, 3)]))
    if has(0.3):
        clip = str(rng.choice(["clip_value", "clip_norm", "clip_global_norm"]))
        settings[clip] = float(10 ** rng.uniform(-3, 2))
    if has(0.2):
        settings["clip_weights"] = float(10 ** rng.uniform(-2, 1))
    if has(0.2):
        settings["ema_decay"] = float(rng.choice([0.0, 0.9, 0.999, 1.0]))
    if has(0.1):
        settings["nonfinite"] = str(rng.choice(["propagate", "raise", "skip"]))
    return {name: value for name, value in settings.items() if name in SETTINGS}


def draw_case(rng):
    n = int(rng.choice([1, 2, 2, 3, 9, 17]))
    if rng.random() < 0.005:
        n = 2100
    w = rng.standard_normal(n) * 10 ** rng.uniform(-3, 3)
    size = 10 ** rng.uniform(-8, 8)
    gradients = []
    for _ in range(int(rng.integers(1, 12))):
        g = rng.standard_normal(n) * size * 10 ** rng.uniform(-2, 2, n)
        if rng.random() < 0.1:
            places = rng.integers(0, n, 1 + n // 3)
            g[places] = rng.choice(SPECIAL, len(places))
        gradients.append((g, float(rng.choice([1.0, 0.25, 1 / 3, 1024.0], p=[0.7, 0.1, 0.1, 0.1]))))
    return draw_settings(rng), w, gradients


def exact_power(beta, t):
    """β to the power t, rounded once."""
    return float(Fraction(beta) ** t) if beta**t > 1e-300 else 0.0


def rounds_as_promised(settings, steps):
    """Whether the power of this platform's C library is, in these steps, the correctly rounded one.

    It rarely is not, and then by one unit in the last place, which the correction 1/(1 − βᵗ) may show.
    """
    beta = settings["beta"]
    return not settings["bias_correction"] or all(
        1 / (1 - beta**t) == 1 / (1 - exact_power(beta, t)) for t in range(1, steps + 1)
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_bits_of_the_reference(seed):
    rng = np.random.default_rng([20261127, seed])
    drawn = [draw_case(rng) for _ in range(700)]
    cases = [case for case in drawn if rounds_as_promised(case[0], len(case[2]))]
    assert len(cases) > 0.8 * len(drawn)
    requests = [
        ("rmsprop", {"settings": s, "w": encode(w), "gradients": [(encode(g), scale) for g, scale in gradients]})
        for s, w, gradients in cases
    ]
    taken = 0
    for answer, (settings, start, gradients) in zip(ask(*requests), cases, strict=True):
        w = start.copy()
        opt = rmsfast.reference.RMSProp(w, **settings)
        for after, (g, scale) in zip(answer, gradients, strict=True):
            steps = opt.steps
            try:
                opt.step(g, grad_scale=scale)
            except FloatingPointError:
                assert settings["nonfinite"] == "raise"
            if opt.steps == steps:
                assert after == {"raise": "refused", "skip": None}[settings["nonfinite"]], settings
                continue
            taken += 1
            state = {name: array for name, array in opt.state[0].items() if isinstance(array, np.ndarray)}
            assert after.keys() == {"param", *state}, settings
            for name, array in {"param": w, **state}.items():
                try:
                    assert_same_bits(decode(after[name]), array)
                except AssertionError as error:
                    raise AssertionError(f"{name} after {opt.steps} steps of {settings}: {error}") from None
    assert taken > 3000


def test_every_setting_of_doubles_is_there():
    (names,) = ask(("settings", None))
    assert set(SETTINGS) - FORMATS <= set(names)
    assert set(names) - set(SETTINGS) <= {"clip_weights", "ema_decay"}


def test_powers_are_rounded_once():
    rng = np.random.default_rng(5)
    betas = [
        0.0,
        0.5,
        0.9,
        0.99,
        0.999,
        1 - 2**-53,
        2**-30,
        5e-324,
        *rng.random(200),
        *(1 - 10 ** rng.uniform(-9, 0, 200)),
    ]
    pairs = [(float(beta), int(t)) for beta in betas for t in [1, 2, 3, 10, 77, 300]]
    (answer,) = ask(("power", {"pairs": pairs}))
    expected = [exact_power(beta, t) for beta, t in pairs]
    got = decode(answer)
    large = np.array(expected) > 1e-290
    assert large.sum() > 1500
    assert_same_bits(got[large], np.array(expected)[large])
    assert (got[~large] < 1e-290).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "lr: -1, expected a number ≥ 0"),
        ({"beta": 1.5}, "beta: 1.5, expected a number from 0 to 1"),
        ({"clip_norm": 0}, "clip_norm: 0, expected a number > 0 or none"),
        ({"centered": 1}, "centered: 1, expected false or true"),
        ({"gamma": 0.9}, "gamma: no such setting, expected one of lr, beta"),
        ({"nesterov": True}, "nesterov: true with momentum 0, expected momentum > 0"),
        ({"bias_correction": True, "beta": 1}, "bias_correction: true with beta 1, expected beta < 1"),
        ({"clip_value": 1, "clip_norm": 1}, "clip_value and clip_norm: set together"),
        ({"lr": 0, "beta": 1, "eps": 0, "clip_value": None}, None),
    ],
    ids=str,
)
def test_settings_are_checked(settings, message):
    (answer,) = ask(("refused", {"settings": settings}))
    assert answer is None if message is None else answer.startswith(message)


def test_dialects_are_those_of_the_package():
    rng = np.random.default_rng(7)
    (takes,) = ask(("dialects", None))
    public = {name for name, f in vars(dialects).items() if inspect.isfunction(f) and "References" in (f.__doc__ or "")}
    assert set(takes) == public
    values = {
        "momentum": [0.0, 0.5], "gamma2": [0.0, 0.5], "centered": [False, True], "nesterov": [False, True],
        "eps_in_sqrt": [False, True], "bias_correction": [False, True], "lr_in_momentum": [False, True],
        "initial_scale": [0.0, 1.0], "clipvalue": [None, 2.0], "clipnorm": [None], "clip_gradient": [None, 2.0],
    }  # fmt: skip
    drawn = []
    for name, arguments in takes.items():
        for _ in range(40):
            args = {
                a: rng.choice(np.array(values.get(a, [0.25, 0.125]), object)) for a in arguments if rng.random() < 0.6
            }
            parameters = inspect.signature(getattr(dialects, name)).parameters
            args |= {a: 0.5 for a in arguments if a not in args and parameters[a].default is inspect.Parameter.empty}
            drawn.append((name, args))
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    for answer, (name, args) in zip(ask(*(("dialect", {"name": n, "args": a}) for n, a in drawn)), drawn, strict=True):
        expected = getattr(dialects, name)(**args)
        assert {**defaults, **answer["settings"]} == {**defaults, **expected}, (name, args)
        back = getattr(dialects, name)(**answer["back"])
        idle = {} if expected.get("momentum") else {"lr_in_momentum": False}
        assert {**defaults, **back, **idle} == {**defaults, **expected, **idle}, (name, args)


class Rules:
    """The other five as their papers have them, in NumPy."""

    @staticmethod
    def SGD(w, gradients, lr):
        for g in gradients:
            yield (w := w - lr * g)

    @staticmethod
    def Momentum(w, gradients, lr, mu=0.9):
        b = 0.0
        for g in gradients:
            b = mu * b + g
            yield (w := w - lr * b)

    @staticmethod
    def AdaGrad(w, gradients, lr, eps=1e-10):
        v = 0.0
        for g in gradients:
            v = v + g * g
            yield (w := w - lr * g / (np.sqrt(v) + eps))

    @staticmethod
    def AdaDelta(w, gradients, eps, rho=0.9):
        v = u = 0.0
        for g in gradients:
            v = rho * v + (1 - rho) * g * g
            change = np.sqrt((u + eps) / (v + eps)) * g
            u = rho * u + (1 - rho) * change * change
            yield (w := w - change)

    @staticmethod
    def Adam(w, gradients, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        m = v = 0.0
        for t, g in enumerate(gradients, 1):
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            yield (w := w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps))


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("Momentum", {"lr": 0.1}),
        ("AdaGrad", {"lr": 0.5}),
        ("AdaDelta", {"eps": 0.01}),
        ("Adam", {"lr": 0.2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_other_five(rule, options):
    rng = np.random.default_rng(3)
    w, gradients = rng.standard_normal(2), list(rng.standard_normal((50, 2)))
    (answer,) = ask(
        ("other", {"rule": rule, "options": options, "w": encode(w), "gradients": [encode(g) for g in gradients]})
    )
    expected = list(getattr(Rules, rule)(w, gradients, **options))
    assert len(expected) == len(answer) == 50
    for after, now in zip(answer, expected, strict=True):
        np.testing.assert_allclose(decode(after), now, rtol=1e-12)  # Adam's powers are those of a C library here


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 180])
def test_landscapes(angle):
    """Each gradient is that of its loss, and its Python text has the same bits."""
    rng = np.random.default_rng(11)
    (names,) = ask(("landscapes", None))
    assert len(names) == 5
    points = rng.uniform(-3, 3, (120, 2))
    arguments = {"angle": angle, "points": [encode(x) for x in points]}
    near = [points + np.array(d) * 1e-6 for d in [(1, 0), (-1, 0), (0, 1), (0, -1)]]
    for name in names:
        here, *around = ask(
            ("terrain", {"name": name, **arguments}),
            *(("terrain", {"name": name, "angle": angle, "points": [encode(x) for x in some]}) for some in near),
        )
        scope = {"np": np}
        exec(here["python"], scope)
        gradients = [decode(g) for g in here["gradients"]]
        for step, (x, g) in enumerate(zip(points, gradients, strict=True)):
            assert_same_bits(scope["gradient"](x, step), g)
        if name == "noisy":
            (calm,) = ask(("terrain", {"name": "noisy", "angle": angle, "points": arguments["points"]}))
            errors = np.array([decode(g) for g in calm["gradients"]]) - slopes(around)
            assert 0.8 < errors.std() < 1.2
            assert abs(errors.mean()) < 0.2
        else:
            np.testing.assert_allclose(gradients, slopes(around), rtol=1e-5, atol=1e-4)
        assert np.allclose(here["minima"], 0)
        assert min(here["losses"]) >= 0


def slopes(around):
    right, left, up, down = (np.array(each["losses"]) for each in around)
    return np.stack([right - left, up - down], axis=1) / 2e-6


# ---- Addresses ----


def test_an_address_holds_the_whole_state():
    """Every part of the state, at a value that is not its default, comes back; and the page writes it as it read it."""
    texts = {
        "landscape": "saddle", "angle": "35", "x1": "-1.25", "x2": "0.5", "lr": "0.07", "beta": "0.8", "eps": "0.001",
        "momentum": "0.6", "nesterov": "1", "centered": "1", "bias_correction": "1", "eps_inside_sqrt": "1",
        "lr_in_momentum": "1", "initial_square_avg": "0.5", "clip_value": "4e22", "steps": "90", "step": "31",
        "spikes": "5,40", "spike": "1000000", "speed": "20", "hide": "adam,sgd", "rate_adadelta": "0.5",
        "rate_adam": "0.9",
    }  # fmt: skip
    (fields,) = ask(("fields", None))
    assert set(fields) - set(texts) == {"dialect"}
    text = "&".join(f"{name}={value}" for name, value in texts.items())
    whole, empty, *single = ask(
        ("address", {"text": f"#{text}"}),
        ("address", {"text": ""}),
        *(("address", {"text": f"{n}={v}"}) for n, v in texts.items()),
    )
    assert whole["problems"] == []
    assert whole["text"] == text
    assert empty["text"] == ""
    assert empty["problems"] == []
    for (name, value), answer in zip(texts.items(), single, strict=True):
        assert answer["problems"] == [] or name == "step", answer  # the ravine has 20 steps
        assert answer["text"] == ("" if name == "step" else f"{name}={value}")
        assert answer["state"] != empty["state"] or name == "step"


@pytest.mark.parametrize("name", ["torch", "keras", "tf1", "optax", "timm", "sb3", "mxnet", "d2l"])
def test_a_dialect_stays_in_the_address(name):
    (text,) = ask(("speak", {"text": "momentum=0.5&centered=1", "name": name}))
    assert text.startswith(f"dialect={name}")
    again, other = ask(
        ("address", {"text": text}),
        ("change", {"text": text, "values": {"clip_value": 0.125, "bias_correction": True}}),
    )
    assert again["text"] == text
    assert again["problems"] == []
    assert "dialect" not in other  # none of the eight has these two


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr=abc", "lr: abc, expected a number ≥ 0"),
        ("lr=-1", "lr: -1, expected"),
        ("lr=", "lr: nothing, expected"),
        ("lr=1e999", "lr: 1e999, expected a number ≥ 0"),
        ("beta=2", "beta: 2, expected a number from 0 to 1"),
        ("rho=0.9", "rho: another framework's name, expected beta"),
        ("constructor=1", "constructor: no such name, expected one of landscape"),
        ("landscape=hill", "landscape: hill, expected one of ravine"),
        ("dialect=toString", "dialect: toString, expected one of torch"),
        ("centered=yes", "centered: yes, expected 1 or 0"),
        ("steps=1e9", "steps: 1e9, expected a whole number from 10 to 300"),
        ("steps=20.5", "steps: 20.5, expected a whole number"),
        ("spikes=3,x", "spikes: x, expected a whole number"),
        ("spike=7", "spike: 7, expected one of 10, 1000, 1000000"),
        ("hide=me", "hide: me, expected one of rmsprop"),
        ("rate_adam=NaN", "rate_adam: NaN, expected a number"),
        ("rate_rmsprop=1", "rate_rmsprop: no such name"),
        ("bias_correction=1&beta=1", "bias_correction: true with beta 1, expected beta < 1"),
        ("x1=" + quote("<img src=x onerror=alert(1)>"), "x1: <img"),
    ],
)
def test_a_wrong_address_is_said_and_left_out(text, problem):
    answer, empty = ask(("address", {"text": text}), ("address", {"text": ""}))
    assert [each for each in answer["problems"] if each.startswith(problem)], answer["problems"]
    assert len(answer["problems"]) == 1
    assert answer["state"] == empty["state"]


def test_a_change_that_is_refused_names_the_setting():
    refused, changed, clamped = ask(
        ("change", {"text": "beta=1", "values": {"bias_correction": True}}),
        ("change", {"text": "lr=0.1&angle=10", "values": {"landscape": "saddle"}}),
        ("change", {"text": "steps=100&step=50", "values": {"steps": 30}}),
    )
    assert refused["refused"].startswith("bias_correction: true with beta 1")
    assert changed == "landscape=saddle&angle=10"  # with its own start, steps and rates
    assert clamped == "steps=30"


def test_stories_are_addresses_as_the_page_writes_them():
    (stories,) = ask(("stories", None))
    assert len(stories) > 8
    for story, answer in zip(stories, ask(*(("address", {"text": each["address"]}) for each in stories)), strict=True):
        assert answer["problems"] == []
        assert answer["text"] == story["address"]
        assert story["text"].endswith(".")


def test_numbers_as_python_prints_them():
    rng = np.random.default_rng(13)
    numbers = [0.0, -0.0, 1.0, -5.0, 1e15, 1e16, 1e22, 123456789012345.6, 1e-4, 9.999e-5, 1.5e-5, 5e-324, 1e300, 0.1]
    numbers += [float(x) for x in rng.standard_normal(300) * 10.0 ** rng.integers(-20, 20, 300)]
    (answer,) = ask(("print", {"numbers": encode(numbers)}))
    assert answer == [repr(x) for x in numbers]
    assert all(math.isfinite(x) for x in numbers)
