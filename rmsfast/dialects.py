"""Each framework's RMSProp as settings of ours: `rmsfast.RMSProp(params, **rmsfast.dialects.keras(rho=0.95))`.

Each function has the framework's own argument names and defaults. The frameworks differ in the place of ε, in the start
of v, in whether the learning rate is part of the momentum buffer, and in the kind of weight decay. With an ε of 1e-3 to
1, as in deep reinforcement learning, each of these changes training visibly. An argument that changes no number is
accepted and has no effect. An argument that rmsfast cannot express raises ValueError.
"""

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]
Rate = float | Callable[[int], float]


def d2l(lr: Rate, gamma: float = 0.9, eps: float = 1e-6) -> Settings:
    """Return the settings of "Dive into Deep Learning": the plain rule, with ε inside the root.

    Parameters
    ----------
    lr : float or callable
        The learning rate η.
    gamma : float
        The decay of the average: our `beta`.
    eps : float
        Added to v under the root. The book has 1e-6, a hundred times PyTorch's.

    References
    ----------
    A. Zhang, Z. Lipton, M. Li and A. Smola, "Dive into Deep Learning", section 12.8, https://d2l.ai.
    """
    return {"lr": lr, "beta": gamma, "eps": eps, "eps_inside_sqrt": True}


def torch(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> Settings:
    """Return the settings of PyTorch's `torch.optim.RMSprop`: ε outside the root, the rate outside the buffer.

    The decay is 0.99, so averages are slow; in other frameworks it is 0.9. Weight decay is added to the gradient.

    Parameters
    ----------
    lr, alpha, eps, weight_decay, momentum, centered, maximize
        As PyTorch's; `alpha` is our `beta`.
    foreach : bool, optional
        How PyTorch computes; no effect.
    capturable, differentiable : bool
        For CUDA graphs and for gradients through the step: False only.

    Raises
    ------
    ValueError
        If `capturable` or `differentiable` is set.

    References
    ----------
    PyTorch 2.13, torch/optim/rmsprop.py, https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html.
    """
    refuse("capturable", capturable, "the step runs on the CPU, where there are no graphs to capture")
    refuse("differentiable", differentiable, "no gradient flows through a step")
    return {
        "lr": lr,
        "beta": alpha,
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "centered": centered,
        "maximize": maximize,
    }


def keras(
    learning_rate: Rate = 0.001,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
) -> Settings:
    """Return the settings of Keras 3's `keras.optimizers.RMSprop`: ε inside the root, the rate inside the buffer.

    Weight decay is decoupled: lr·weight_decay·w is subtracted from w before the step, and the average does not include
    it. In PyTorch it is part of the gradient.

    Parameters
    ----------
    learning_rate, rho, momentum, epsilon, centered, weight_decay, clipnorm, clipvalue, global_clipnorm
        As Keras's; `rho` is our `beta`. At most one of the three limits may be set. `clipnorm` limits the norm of each
        variable's gradient.
    use_ema : bool
        Keep averages of the weights, with a decay of `ema_momentum`: our `ema_decay`. ``with opt.averages():`` puts
        them in the place of the weights. Ours start as the weights before the first step, Keras's as those after it;
        the difference decays as ema_momentumᵗ.
    ema_momentum : float
        Without `use_ema`, no effect.
    ema_overwrite_frequency : int, optional
        Not supported with `use_ema`: copy the averages to the weights in your loop, ``w[...] =
        opt.state[name]["ema"]``. Without it, no effect.
    loss_scale_factor : float, optional
        Not supported: give its reciprocal to each step, ``opt.step(grads, grad_scale=1 / loss_scale_factor)``.
    gradient_accumulation_steps : int, optional
        Not supported: add up the gradients of so many batches, and then call ``opt.step(grads, grad_scale=1 /
        gradient_accumulation_steps, zero_grads=True)``.
    name : str, optional
        No effect.

    Raises
    ------
    ValueError
        If `loss_scale_factor` or `gradient_accumulation_steps` is set, or `ema_overwrite_frequency` with `use_ema`.

    References
    ----------
    Keras 3, keras/src/optimizers/rmsprop.py and base_optimizer.py, https://keras.io/api/optimizers/rmsprop/.
    """
    if use_ema:
        advice = 'copy the averages to the weights in your loop, w[...] = opt.state[name]["ema"]'
        refuse("ema_overwrite_frequency", ema_overwrite_frequency, advice)
    refuse("loss_scale_factor", loss_scale_factor, "give each step its reciprocal, as opt.step(grads, grad_scale=...)")
    advice = "add up the gradients of so many batches, then opt.step(grads, grad_scale=1 / so many, zero_grads=True)"
    refuse("gradient_accumulation_steps", gradient_accumulation_steps, advice)
    return {
        "lr": learning_rate,
        "beta": rho,
        "eps": epsilon,
        "momentum": momentum,
        "centered": centered,
        "weight_decay": 0.0 if weight_decay is None else weight_decay,
        "decoupled_weight_decay": True,
        "eps_inside_sqrt": True,
        "lr_in_momentum": True,
        "clip_value": clipvalue,
        "clip_norm": clipnorm,
        "clip_global_norm": global_clipnorm,
        "ema_decay": ema_momentum if use_ema else None,
    }


def tf1(
    learning_rate: Rate,
    decay: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-10,
    use_locking: bool = False,
    centered: bool = False,
    name: str = "RMSProp",
) -> Settings:
    """Return the settings of TensorFlow 1's `tf.train.RMSPropOptimizer`: v starts at 1, ε inside the root.

    Because v starts at 1, the first steps are small where gradients are small. The rate is inside the buffer. There is
    no weight decay.

    Parameters
    ----------
    learning_rate, decay, momentum, epsilon, centered
        As TensorFlow's; `decay` is our `beta`.
    use_locking, name
        No effect: a step is always locked.

    References
    ----------
    TensorFlow 1.15, tensorflow/python/training/rmsprop.py,
    https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/RMSPropOptimizer.
    """
    return {
        "lr": learning_rate,
        "beta": decay,
        "eps": epsilon,
        "momentum": momentum,
        "centered": centered,
        "eps_inside_sqrt": True,
        "lr_in_momentum": True,
        "initial_square_avg": 1.0,
    }


def sb3(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
) -> Settings:
    """Return the settings of Stable-Baselines3's `RMSpropTFLike`: PyTorch's, with ε inside the root and v from 1.

    It follows TensorFlow's, except that the rate stays outside the buffer.

    Parameters
    ----------
    lr, alpha, eps, weight_decay, momentum, centered
        As there; `alpha` is our `beta`.

    References
    ----------
    Stable-Baselines3, stable_baselines3/common/sb2_compat/rmsprop_tf_like.py,
    https://stable-baselines3.readthedocs.io/en/master/modules/a2c.html.
    """
    return {
        **torch(lr, alpha, eps, weight_decay, momentum, centered),
        "eps_inside_sqrt": True,
        "initial_square_avg": 1.0,
    }


def timm(
    lr: float = 1e-2,
    alpha: float = 0.9,
    eps: float = 1e-10,
    weight_decay: float = 0,
    momentum: float = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    corrected_weight_decay: bool = False,
) -> Settings:
    """Return the settings of timm's `RMSpropTF`: ε inside the root, v from 1, the rate inside the buffer or outside.

    TensorFlow's numbers (a decay of 0.9, an ε of 1e-10) under PyTorch's names, with weight decay of either kind.

    Parameters
    ----------
    lr, alpha, eps, weight_decay, momentum, centered, decoupled_decay, lr_in_momentum
        As there; `alpha` is our `beta`.
    caution, corrected_weight_decay : bool
        Later additions, not supported: False only.

    Raises
    ------
    ValueError
        If `caution` or `corrected_weight_decay` is set.

    References
    ----------
    timm (pytorch-image-models), timm/optim/rmsprop_tf.py, https://github.com/huggingface/pytorch-image-models.
    """
    refuse("caution", caution, "updates are not masked by the sign of the gradient")
    refuse("corrected_weight_decay", corrected_weight_decay, "decoupled weight decay takes lr·weight_decay·w here")
    return {
        **torch(lr, alpha, eps, weight_decay, momentum, centered),
        "decoupled_weight_decay": decoupled_decay,
        "eps_inside_sqrt": True,
        "lr_in_momentum": lr_in_momentum,
        "initial_square_avg": 1.0,
    }


def optax(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Settings:
    """Return the settings of Optax's `optax.rmsprop`: ε inside the root or outside, the rate inside the buffer.

    Optax accepts `nesterov` without a momentum and ignores it. So does this function. Optax's centered form can take
    the root of a negative number, with `bias_correction` at the very first step, and becomes NaN. Ours uses 0.

    Parameters
    ----------
    learning_rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov, bias_correction
        As Optax's; `decay` is our `beta`, `initial_scale` is where v starts.

    References
    ----------
    Optax 0.2, optax/_src/alias.py and transform.py, https://optax.readthedocs.io/en/latest/api/optimizers.html.
    """
    return {
        "lr": learning_rate,
        "beta": decay,
        "eps": eps,
        "momentum": momentum or 0.0,
        "nesterov": bool(nesterov and momentum),
        "centered": centered,
        "eps_inside_sqrt": eps_in_sqrt,
        "lr_in_momentum": True,
        "bias_correction": bias_correction,
        "initial_square_avg": initial_scale,
    }


def mxnet(
    learning_rate: float = 0.001,
    gamma1: float = 0.9,
    gamma2: float = 0.9,
    epsilon: float = 1e-8,
    centered: bool = False,
    clip_weights: float | None = None,
    *,
    wd: float = 0.0,
    rescale_grad: float = 1.0,
    clip_gradient: float | None = None,
) -> Settings:
    """Return the settings of MXNet 1.x's `mxnet.optimizer.RMSProp`: ε inside the root; a momentum if centered.

    The uncentered form has no momentum, and `gamma2` has no effect on it. The centered form is Graves's, with `gamma2`
    as the momentum and the rate inside the buffer. Weight decay is added to the gradient. (MXNet 2 has other names for
    the decays, clips first, and has ε outside the root when not centered.)

    Parameters
    ----------
    learning_rate, gamma1, gamma2, epsilon, centered, clip_weights, wd, clip_gradient
        As MXNet's; `gamma1` is our `beta`, `clip_gradient` our `clip_value`. A negative limit means none, and so does 0
        for `clip_weights`.
    rescale_grad : float
        Not supported: give it to each step, ``opt.step(grads, grad_scale=rescale_grad)``.

    Raises
    ------
    ValueError
        If `rescale_grad` is set; or `wd` and `clip_gradient` both, because MXNet 1.x adds weight
        decay before it clips, and rmsfast after.

    References
    ----------
    MXNet 1.9, python/mxnet/optimizer/optimizer.py and src/operator/optimizer_op-inl.h,
    https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/optimizer/index.html.
    """
    refuse("rescale_grad", rescale_grad, "give it to each step, as opt.step(grads, grad_scale=...)", 1)
    limit = None if clip_gradient is None or clip_gradient < 0 else clip_gradient
    if limit is not None:
        refuse("wd", wd, "with clip_gradient, MXNet adds weight decay before it clips, and rmsfast after", 0)
    return {
        "lr": learning_rate,
        "beta": gamma1,
        "eps": epsilon,
        "momentum": gamma2 if centered else 0.0,
        "centered": centered,
        "weight_decay": wd,
        "eps_inside_sqrt": True,
        "lr_in_momentum": True,
        "clip_value": limit,
        "clip_weights": None if clip_weights is None or clip_weights <= 0 else clip_weights,
    }


def refuse(name: str, value: Any, reason: str, neutral: Any = None) -> None:
    """Raise unless the value of a keyword has no effect: `neutral`, None or False."""
    if value is not None and value is not False and value != neutral:
        raise ValueError(f"{name}: {value!r}, expected {neutral}: {reason}")
