"""accelerate with rmsfast: `prepare`, accumulated gradients, clipping, and a saved state.

    python examples/clients/accelerate_loop.py

Needs `pip install ".[clients]"`.
"""

import tempfile

import torch
from accelerate import Accelerator
from beside import compare
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


def train(optimizer_class: type) -> torch.nn.Module:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1600, 16, generator=generator)
    data = DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), 16)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = optimizer_class(model.parameters(), lr=1e-3, momentum=0.5)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    for epoch in range(4):
        for inputs, targets in data:
            with accelerator.accumulate(model):
                accelerator.backward(torch.nn.functional.mse_loss(model(inputs), targets))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        if epoch == 1:
            with tempfile.TemporaryDirectory() as folder:
                accelerator.save_state(folder)
                accelerator.load_state(folder)
    return accelerator.unwrap_model(model)


compare(train)
