"""Lightning with rmsfast: an optimizer, a scheduler, clipping, and a run that goes on from a checkpoint.

    python examples/clients/lightning_loop.py

The trainer's `gradient_clip_val` works; `clip_global_norm` does the same in the optimizer's own pass. Needs
`pip install ".[clients]"`.
"""

import logging
import tempfile

import lightning
import torch
from beside import compare
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Model(lightning.LightningModule):
    def __init__(self, optimizer_class: type) -> None:
        super().__init__()
        self.optimizer_class = optimizer_class
        self.layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self):
        optimizer = self.optimizer_class(self.parameters(), lr=1e-3, momentum=0.5)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)}


def train(optimizer_class: type) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1600, 16, generator=generator)
    data = DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), 32)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {**quiet, "enable_checkpointing": False, "gradient_clip_val": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        first = lightning.Trainer(max_epochs=2, default_root_dir=folder, **settings)
        first.fit(Model(optimizer_class), data)
        first.save_checkpoint(f"{folder}/half.ckpt")
        model = Model(optimizer_class)
        second = lightning.Trainer(max_epochs=4, default_root_dir=folder, **settings)
        second.fit(model, data, ckpt_path=f"{folder}/half.ckpt", weights_only=False)
    assert second.optimizers[0].param_groups[0]["lr"] < 0.5e-3, "the scheduler went on from the checkpoint"
    return model


compare(train)
