"""rmsfast.dialects against trajectories that the frameworks themselves made, and what each dialect refuses.

tests/data/make_golden.py made the trajectories; tests/peers/ compares with the frameworks where they are installed.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peers.frameworks import tolerance

import rmsfast
from rmsfast import dialects

CLASSES = [rmsfast.RMSProp, rmsfast.reference.RMSProp]
GOLDEN = json.loads(Path(__file__).with_name("data").joinpath("trajectories.json").read_text(encoding="utf-8"))
RATE = {"torch": "lr", "keras": "learning_rate", "optax": "learning_rate"}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["dialect"])
def test_trajectories_of_the_frameworks(cls, case):
    w = np.array(GOLDEN["start"])
    rate = {RATE[case["dialect"]]: GOLDEN["rates"][0]}
    opt = cls(w, **getattr(dialects, case["dialect"])(**rate, **case["kwargs"]))
    opt.lr = lambda step: GOLDEN["rates"][step]
    for g, after in zip(GOLDEN["gradients"], case["after"], strict=True):
        opt.step(np.array(g))
        distance = np.abs(w - after).max() / np.abs(after).max()
        assert distance <= tolerance(case["dialect"], case["kwargs"])


def test_the_trajectories_tell_the_dialects_apart():
    """Each has some in which another dialect with the same decay, ε and momentum is visibly elsewhere."""
    assert {case["dialect"] for case in GOLDEN["cases"]} == {"torch", "keras", "optax"}
    g = [np.array([0.1]), np.array([-0.3]), np.array([0.2])]
    ends = set()
    for make in (
        lambda: dialects.torch(0.1, 0.9, 0.1, momentum=0.5),
        lambda: dialects.keras(0.1, 0.9, 0.5, 0.1),
        lambda: dialects.tf1(0.1, 0.9, 0.5, 0.1),
        lambda: dialects.sb3(0.1, 0.9, 0.1, momentum=0.5),
        lambda: dialects.optax(0.1, 0.9, 0.1, momentum=0.5, nesterov=True),
        lambda: dialects.mxnet(0.1, 0.9, 0.5, 0.1, centered=True),
    ):
        w = np.zeros(1)
        opt = rmsfast.RMSProp(w, **make())
        for step, each in enumerate(g):
            opt.lr = 0.1 / (1 + step)
            opt.step(each)
        ends.add(round(float(w[0]), 6))
    assert len(ends) == 6


# The defaults that the frameworks document, beside those that are 0, False or None.
DEFAULTS = {
    "torch": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "keras": {"learning_rate": 1e-3, "rho": 0.9, "epsilon": 1e-7, "ema_momentum": 0.99},
    "tf1": {"decay": 0.9, "epsilon": 1e-10, "name": "RMSProp"},
    "optax": {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": True},
    "timm": {"lr": 1e-2, "alpha": 0.9, "eps": 1e-10, "lr_in_momentum": True},
    "sb3": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "mxnet": {"learning_rate": 1e-3, "gamma1": 0.9, "gamma2": 0.9, "epsilon": 1e-8, "rescale_grad": 1.0},
    "d2l": {"gamma": 0.9, "eps": 1e-6},
}
REQUIRED = {"tf1": {"learning_rate": 0.1}, "optax": {"learning_rate": 0.1}, "d2l": {"lr": 0.1}}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    parameters = inspect.signature(getattr(dialects, name)).parameters
    assert {key: p.default for key, p in parameters.items() if p.default} == {
        **DEFAULTS[name],
        **dict.fromkeys(REQUIRED.get(name, {}), inspect.Parameter.empty),
    }


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", DEFAULTS)
def test_the_settings_are_ours(cls, name):
    settings = getattr(dialects, name)(**REQUIRED.get(name, {}))
    opt = cls(np.ones(3), **settings)
    opt.step(np.ones(3))
    assert {key: opt.param_groups[0][key] for key in settings} == settings


def test_what_optax_ignores():
    for momentum in None, 0.0:
        settings = dialects.optax(0.1, momentum=momentum, nesterov=True)
        assert settings["nesterov"] is False
        rmsfast.RMSProp(np.ones(3), **settings)
    assert dialects.optax(0.1, momentum=0.9, nesterov=True)["nesterov"] is True


def test_what_mxnet_ignores():
    assert dialects.mxnet(gamma2=0.5)["momentum"] == 0
    assert dialects.mxnet(gamma2=0.5, centered=True)["momentum"] == 0.5
    assert dialects.mxnet(clip_gradient=-1.0, wd=0.1)["clip_value"] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dialects.torch(capturable=True), "capturable: True, expected"),
        (lambda: dialects.torch(differentiable=True), "differentiable: True, expected"),
        (
            lambda: dialects.keras(use_ema=True, ema_overwrite_frequency=3),
            r"ema_overwrite_frequency: 3, expected None: copy .*, w\[...\] = opt.state\[name\]\[\"ema\"\]$",
        ),
        (
            lambda: dialects.keras(loss_scale_factor=8.0),
            r"loss_scale_factor: 8.0, expected .* opt.step\(grads, grad_scale=",
        ),
        (
            lambda: dialects.keras(gradient_accumulation_steps=4),
            r"gradient_accumulation_steps: 4, expected None: add up .* opt.step\(grads, grad_scale=1 / so many, zero",
        ),
        (lambda: dialects.timm(caution=True), "caution: True, expected"),
        (lambda: dialects.timm(corrected_weight_decay=True), "corrected_weight_decay: True, expected"),
        (lambda: dialects.mxnet(rescale_grad=0.5), r"rescale_grad: 0.5, expected 1: .* opt.step\(grads, grad_scale="),
        (lambda: dialects.mxnet(wd=0.1, clip_gradient=1.0), "wd: 0.1, expected 0: with clip_gradient, MXNet adds"),
    ],
)
def test_what_cannot_be_expressed(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_the_averages_of_keras():
    assert dialects.keras(use_ema=True)["ema_decay"] == 0.99
    assert dialects.keras(use_ema=True, ema_momentum=0.5)["ema_decay"] == 0.5
    assert dialects.keras(ema_momentum=0.5)["ema_decay"] is None


def test_the_limits_of_mxnet():
    assert dialects.mxnet(clip_weights=0.01)["clip_weights"] == 0.01
    for none in None, 0, -1.0:
        assert dialects.mxnet(clip_weights=none)["clip_weights"] is None


def test_every_refusal_is_documented():
    """docs/variants.md lists the keywords that a dialect refuses, each with the dialects that do."""
    source = inspect.getsource(dialects)
    text = Path(__file__).parent.with_name("docs").joinpath("variants.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (`[^|]*`) \|", text.split("## What is refused")[1], re.MULTILINE))
    refused = {}
    for name in DEFAULTS:
        for keyword in re.findall(r'refuse\("(\w+)"', inspect.getsource(getattr(dialects, name))):
            refused.setdefault(keyword, []).append(name)
    assert len(refused) == len(set(re.findall(r'refuse\("(\w+)"', source))) > 0
    assert table == {keyword: ", ".join(f"`{name}`" for name in names) for keyword, names in refused.items()}


def test_what_changes_no_number():
    assert dialects.torch(foreach=True) == dialects.torch()
    assert dialects.keras(ema_momentum=0.5, ema_overwrite_frequency=3, name="x") == dialects.keras()
    assert dialects.tf1(0.1, use_locking=True, name="x") == dialects.tf1(0.1)


def ravine(w, scale=1.0):
    return np.array([0.2 * w[0], 4 * w[1]])


def rotated(w):
    total, difference = 0.2 * (w[0] + w[1]), 4 * (w[0] - w[1])
    return np.array([total + difference, total - difference])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("gradient", [ravine, rotated])
def test_the_ravine_of_dive_into_deep_learning(cls, gradient):
    """20 steps from (−5, −2), by the two lines of the book."""
    w, x, s = np.array([-5.0, -2.0]), np.array([-5.0, -2.0]), np.zeros(2)
    opt = cls(w, **dialects.d2l(lr=0.4))
    for _ in range(20):
        opt.step(gradient(w))
        g = gradient(x)
        s = 0.9 * s + 0.1 * g**2
        x -= 0.4 / np.sqrt(s + 1e-6) * g
    assert w == pytest.approx(x, rel=1e-10)
    if gradient is ravine:
        assert w == pytest.approx([-0.01, 0.0], abs=0.01)  # the book's picture ends at (−0.010599, 0.000000)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_decay_of_one_never_leaves_the_start(cls):
    """v stays 0, so that the denominator stays √ε: gradient descent, a thousand times too fast."""
    w = np.array([-5.0, -2.0])
    cls(w, **dialects.d2l(lr=0.4, gamma=1.0)).step(ravine(w))
    assert w == pytest.approx([-5 + 400 * 1.0, -2 + 400 * 8.0], rel=1e-12)


def test_no_framework_is_imported():
    program = (
        "import sys, rmsfast; rmsfast.dialects.torch(); "
        "print({'torch', 'keras', 'optax', 'jax', 'tensorflow', 'mxnet', 'timm'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
