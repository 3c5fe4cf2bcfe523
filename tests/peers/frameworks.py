"""The frameworks' own optimizers behind one function each, in float64.

`RUN[name](kwargs, rates, start, gradients)` makes the optimizer with `kwargs` beside the rate, takes a step at each
rate with its list of gradients, and returns the parameters after each step. `SETTINGS[name]` has values to draw from
for every keyword that a dialect expresses.
"""

import os

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")


def run_torch(kwargs, rates, start, gradients):
    import torch

    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = torch.optim.RMSprop(params, **kwargs)
    after = []
    for rate, grads in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for w, g in zip(params, grads, strict=True):
            w.grad = torch.tensor(g)
        optimizer.step()
        after.append([w.detach().numpy().copy() for w in params])
    return after


def run_keras(kwargs, rates, start, gradients):
    import keras
    import torch

    keras.backend.set_floatx("float64")  # the rate is kept in it, too
    params = [keras.Variable(w) for w in start]
    optimizer = keras.optimizers.RMSprop(**kwargs)
    optimizer.build(params)
    after = []
    for rate, grads in zip(rates, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([torch.tensor(g) for g in grads])
        after.append([keras.ops.convert_to_numpy(w).copy() for w in params])
    return after


def run_optax(kwargs, rates, start, gradients):
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_enable_x64", True)
    table = jnp.array(rates)
    optimizer = optax.rmsprop(lambda count: table[count], **kwargs)
    params = [jnp.array(w) for w in start]
    state = optimizer.init(params)
    after = []
    for grads in gradients:
        updates, state = optimizer.update([jnp.array(g) for g in grads], state, params)
        params = optax.apply_updates(params, updates)
        after.append([np.array(w) for w in params])
    return after


RUN = {"torch": run_torch, "keras": run_keras, "optax": run_optax}

SETTINGS = {
    "torch": {
        "alpha": [0.5, 0.9, 0.99],
        "eps": [1e-8, 1e-3, 1.0],
        "weight_decay": [0, 0.05],
        "momentum": [0, 0.5, 0.9],
        "centered": [False, True],
        "foreach": [None, False, True],
        "maximize": [False, True],
    },
    "keras": {
        "rho": [0.5, 0.9, 0.99],
        "momentum": [0.0, 0.5, 0.9],
        "epsilon": [1e-7, 1e-3, 1.0],
        "centered": [False, True],
        "weight_decay": [None, 0.05],
        "clip": [{}, {"clipnorm": 1.5}, {"clipvalue": 0.7}, {"global_clipnorm": 2.5}],
    },
    "optax": {
        "decay": [0.5, 0.9, 0.99],
        "eps": [1e-8, 1e-3, 1.0],
        "initial_scale": [0.0, 1.0],
        "eps_in_sqrt": [False, True],
        "centered": [False, True],
        "momentum": [None, 0.0, 0.5, 0.9],
        "nesterov": [False, True],
        "bias_correction": [False, True],
    },
}


def tolerance(name, kwargs):
    """How far from ours a framework's float64 parameters may be, relative to the largest of an array, and why."""
    if name == "keras" and ("clipnorm" in kwargs or "global_clipnorm" in kwargs):
        # Keras 3 forms the factor in float32, because its maximum of a float64 tensor and a Python float is one: 6e-8,
        # in each of 50 steps, for parameters that come near 0.
        return 1e-5
    if kwargs.get("centered"):
        return 1e-10  # the difference v − m² keeps some digits fewer than v and m² have: two with these gradients
    return 1e-12  # rounding alone


def draw(rng, name):
    """Draw one value for each keyword of a framework."""
    kwargs = {key: values[rng.integers(len(values))] for key, values in SETTINGS[name].items()}
    kwargs |= kwargs.pop("clip", {})
    if kwargs.get("bias_correction") and kwargs["centered"]:
        # At the first step v̂ − m̂² is what rounding leaves of 0. Only an ε inside the root that is much larger makes
        # something of it that can be compared.
        kwargs |= {"eps": 1.0, "eps_in_sqrt": True}
    return kwargs
