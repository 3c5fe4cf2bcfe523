"""Stable-Baselines3's A2C with rmsfast: `optimizer_class` in `policy_kwargs`.

    python examples/clients/sb3_a2c.py

A2C's default is PyTorch's RMSprop. Stable-Baselines3's own RMSpropTFLike is compared, too. Needs
`pip install ".[clients]"`.
"""

import torch
from beside import compare
from stable_baselines3 import A2C
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

import rmsfast.torch

torch.set_num_threads(1)  # as is usual for networks this small


def train(optimizer_class: type) -> torch.nn.Module:
    settings = {"optimizer_class": optimizer_class, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
    agent = A2C("MlpPolicy", "CartPole-v1", policy_kwargs=settings, seed=0, device="cpu")
    return agent.learn(2000).policy


compare(train)
compare(train, theirs=RMSpropTFLike, ours=rmsfast.torch.RMSpropTFLike)
