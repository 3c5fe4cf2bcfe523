"""Whole training loops for `python -m bench.torch_optim`: a turn of each, with any optimizer, on data made here.

Each function returns a model and what computes a loss from it; a turn is zero_grad, that loss, backward and a step.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[], Tensor]
BATCH = 32


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp() -> tuple[nn.Module, Loss]:
    """64-128-128-10, in batches of 32."""
    model = perceptron(64, 128, 128, 10)
    x, labels = torch.randn(BATCH, 64), torch.randint(10, (BATCH,))
    return model, lambda: functional.cross_entropy(model(x), labels)


def mlp_bfloat16() -> tuple[nn.Module, Loss]:
    """The same in bfloat16, its parameters included."""
    model = perceptron(64, 128, 128, 10).to(torch.bfloat16)
    x, labels = torch.randn(BATCH, 64, dtype=torch.bfloat16), torch.randint(10, (BATCH,))
    return model, lambda: functional.cross_entropy(model(x).float(), labels)


def dqn() -> tuple[nn.Module, Loss]:
    """Q-learning from a buffer, with a target network: 4-64-64-2."""
    model, target = perceptron(4, 64, 64, 2), perceptron(4, 64, 64, 2)
    state, after, reward = torch.randn(1000, 4), torch.randn(1000, 4), torch.randn(1000)
    action, ended = torch.randint(2, (1000, 1)), torch.rand(1000) < 0.1

    def loss() -> Tensor:
        batch = torch.randint(1000, (BATCH,))
        with torch.no_grad():
            best = reward[batch] + 0.99 * target(after[batch]).amax(1) * ~ended[batch]
        return functional.smooth_l1_loss(model(state[batch]).gather(1, action[batch]).squeeze(1), best)

    return model, loss


def a2c() -> tuple[nn.Module, Loss]:
    """Advantage actor-critic on 8 poles that are balanced on carts, 5 steps of them in each turn."""
    model = perceptron(4, 64, 64, 3)  # two actions, and the value
    poles = Poles(8)

    def loss() -> Tensor:
        outputs, rewards, logs = [], [], []
        for _ in range(5):
            out = model(poles.state)
            policy = torch.distributions.Categorical(logits=out[:, :2])
            action = policy.sample()
            logs.append(policy.log_prob(action))
            outputs.append(out[:, 2])
            rewards.append(poles.move(action))
        with torch.no_grad():
            gain = model(poles.state)[:, 2]
        total = torch.zeros(())
        for value, reward, log in zip(reversed(outputs), reversed(rewards), reversed(logs), strict=True):
            gain = reward * (1 + 0.99 * gain)
            advantage = gain - value
            total = total + (0.5 * advantage.square() - log * advantage.detach()).mean()
        return total

    return model, loss


class Poles:
    """CartPole, as in Barto, Sutton and Anderson 1983, for several carts at once."""

    def __init__(self, count: int) -> None:
        self.state = 0.1 * torch.rand(count, 4) - 0.05

    def move(self, action: Tensor) -> Tensor:
        """Push each cart left or right; return 1 where its pole still stands, and set up those that fell."""
        _, speed, angle, turning = self.state.unbind(1)
        sine, cosine = angle.sin(), angle.cos()
        force = (20.0 * action - 10.0 + 0.05 * turning.square() * sine) / 1.1
        bend = (9.8 * sine - cosine * force) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
        push = force - 0.05 * bend * cosine / 1.1
        changes = torch.stack([speed, push, turning, bend], 1)
        state = self.state + 0.02 * changes
        stands = (state[:, 0].abs() < 2.4) & (state[:, 2].abs() < 0.209)
        self.state = torch.where(stands[:, None], state, 0.1 * torch.rand_like(state) - 0.05)
        return stands.float()


def cnn() -> tuple[nn.Module, Loss]:
    """Two convolutions and two layers on pictures of 8 by 8."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    x, labels = torch.randn(BATCH, 1, 8, 8), torch.randint(10, (BATCH,))
    return model, lambda: functional.cross_entropy(model(x), labels)


def transformer() -> tuple[nn.Module, Loss]:
    """Two layers of width 64 that predict the next of 32 letters, in lines of 16."""
    letters, layer = nn.Embedding(32, 64), nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.Sequential(letters, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 32))
    text = torch.randint(32, (8, 17))
    return model, lambda: functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


LOOPS = {
    "mlp, 64-128-128-10": mlp,
    "the same in bfloat16": mlp_bfloat16,
    "dqn, 4-64-64-2": dqn,
    "a2c on CartPole": a2c,
    "cnn, 8×8": cnn,
    "transformer, 2×64": transformer,
}


def large() -> tuple[nn.Module, Loss]:
    """Eight layers of 1 M parameters, in batches of 4: what a step in backward is for."""
    model = perceptron(*[1024] * 9)
    x = torch.randn(4, 1024)
    return model, lambda: model(x).square().mean()
