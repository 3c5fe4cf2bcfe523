"""rmsfast against frameworks that are too heavy to install: their formulas, written out in their own letters.

TensorFlow 1: the class's documentation and training_ops; MXNet 1.x: rmsprop_update and rmspropalex_update in its
operator reference; timm and Stable-Baselines3: the step methods of RMSpropTF and RMSpropTFLike; Dive into Deep
Learning: its section on RMSProp.
"""

import numpy as np
import pytest

import rmsfast


class TF1:
    def __init__(self, w, learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
        self.var, self.lr, self.rho, self.momentum, self.epsilon = w, learning_rate, decay, momentum, epsilon
        self.ms, self.mg, self.mom, self.centered = np.ones_like(w), np.zeros_like(w), np.zeros_like(w), centered

    def step(self, grad):
        self.ms = self.rho * self.ms + (1 - self.rho) * grad**2
        denominator = self.ms + self.epsilon
        if self.centered:
            self.mg = self.rho * self.mg + (1 - self.rho) * grad
            denominator = self.ms - self.mg**2 + self.epsilon
        self.mom = self.momentum * self.mom + self.lr * grad / np.sqrt(denominator)
        self.var -= self.mom


class MXNet1:
    def __init__(
        self,
        w,
        learning_rate=0.001,
        gamma1=0.9,
        gamma2=0.9,
        epsilon=1e-8,
        centered=False,
        wd=0.0,
        clip=None,
        clip_weights=None,
    ):
        self.clip_weights = clip_weights
        self.weight, self.lr, self.gamma1, self.gamma2, self.epsilon = w, learning_rate, gamma1, gamma2, epsilon
        self.centered, self.wd, self.clip = centered, wd, clip
        self.n, self.g, self.delta = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)

    def step(self, grad):
        grad = grad + self.wd * self.weight
        if self.clip is not None:
            grad = np.clip(grad, -self.clip, self.clip)
        self.n = (1 - self.gamma1) * grad**2 + self.gamma1 * self.n
        if self.centered:
            self.g = (1 - self.gamma1) * grad + self.gamma1 * self.g
            self.delta = self.gamma2 * self.delta - self.lr * grad / np.sqrt(self.n - self.g**2 + self.epsilon)
            self.weight += self.delta
        else:
            self.weight -= self.lr * grad / np.sqrt(self.n + self.epsilon)
        if self.clip_weights is not None:
            self.weight[:] = np.clip(self.weight, -self.clip_weights, self.clip_weights)


class Timm:
    def __init__(
        self,
        w,
        lr=1e-2,
        alpha=0.9,
        eps=1e-10,
        weight_decay=0.0,
        momentum=0.0,
        centered=False,
        decoupled_decay=False,
        lr_in_momentum=True,
    ):
        self.p, self.lr, self.alpha, self.eps, self.weight_decay, self.momentum = (
            w,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
        )
        self.centered, self.decoupled_decay, self.lr_in_momentum = centered, decoupled_decay, lr_in_momentum
        self.square_avg, self.grad_avg, self.buf = np.ones_like(w), np.zeros_like(w), np.zeros_like(w)

    def step(self, grad):
        if self.decoupled_decay:
            self.p *= 1 - self.lr * self.weight_decay
        else:
            grad = grad + self.weight_decay * self.p
        self.square_avg += (1 - self.alpha) * (grad**2 - self.square_avg)
        avg = np.sqrt(self.square_avg + self.eps)
        if self.centered:
            self.grad_avg += (1 - self.alpha) * (grad - self.grad_avg)
            avg = np.sqrt(self.square_avg - self.grad_avg**2 + self.eps)
        if self.momentum == 0:
            self.p -= self.lr * grad / avg
        elif self.lr_in_momentum:
            self.buf = self.momentum * self.buf + self.lr * grad / avg
            self.p -= self.buf
        else:
            self.buf = self.momentum * self.buf + grad / avg
            self.p -= self.lr * self.buf


class StableBaselines3(Timm):
    def __init__(self, w, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
        super().__init__(w, lr, alpha, eps, weight_decay, momentum, centered, lr_in_momentum=False)


class D2L:
    def __init__(self, w, lr, gamma=0.9, eps=1e-6):
        self.p, self.lr, self.gamma, self.eps, self.s = w, lr, gamma, eps, np.zeros_like(w)

    def step(self, grad):
        self.s = self.gamma * self.s + (1 - self.gamma) * np.square(grad)
        self.p -= self.lr * grad / np.sqrt(self.s + self.eps)


DECAYS, EPS, MOMENTA, BOTH = [0.5, 0.9, 0.99], [1e-10, 1e-3, 1.0], [0.0, 0.5, 0.9], [False, True]

# Of each dialect: the transcription, its name for the rate, and values to draw from.
CASES = {
    "tf1": (TF1, "learning_rate", {"decay": DECAYS, "momentum": MOMENTA, "epsilon": EPS, "centered": BOTH}),
    "mxnet": (
        MXNet1,
        "learning_rate",
        {
            "gamma1": DECAYS,
            "gamma2": MOMENTA,
            "epsilon": EPS,
            "centered": BOTH,
            "change": [{}, {"wd": 0.05}, {"clip_gradient": 0.7}, {"clip_weights": 0.8}],
        },
    ),
    "timm": (
        Timm,
        "lr",
        {
            "alpha": DECAYS,
            "eps": EPS,
            "weight_decay": [0.0, 0.05],
            "momentum": MOMENTA,
            "centered": BOTH,
            "decoupled_decay": BOTH,
            "lr_in_momentum": BOTH,
        },
    ),
    "sb3": (
        StableBaselines3,
        "lr",
        {"alpha": DECAYS, "eps": EPS, "weight_decay": [0.0, 0.05], "momentum": MOMENTA, "centered": BOTH},
    ),
    "d2l": (D2L, "lr", {"gamma": DECAYS, "eps": EPS}),
}


@pytest.mark.parametrize("dialect", CASES)
@pytest.mark.parametrize("seed", range(40))
def test_the_same_numbers(dialect, seed):
    transcription, rate_name, values = CASES[dialect]
    rng = np.random.default_rng(seed)
    kwargs = {key: choices[rng.integers(len(choices))] for key, choices in values.items()}
    kwargs |= kwargs.pop("change", {})
    start = rng.standard_normal(20)
    theirs, w = start.copy(), start.copy()
    in_transcription = {"clip" if key == "clip_gradient" else key: value for key, value in kwargs.items()}
    peer = transcription(theirs, **{rate_name: 0.01}, **in_transcription)
    opt = rmsfast.RMSProp([w], **getattr(rmsfast.dialects, dialect)(**{rate_name: 0.01}, **kwargs))
    for _ in range(50):
        rate = float(rng.uniform(0.005, 0.05))
        peer.lr = opt.lr = rate
        g = rng.standard_normal(20)
        peer.step(g)
        opt.step([g])
        # Rounding alone; centered, the difference v − m² keeps fewer digits than v and m² have.
        assert np.abs(w - theirs).max() <= (1e-10 if kwargs.get("centered") else 1e-12) * np.abs(theirs).max()
