"""transformers' Trainer with rmsfast: `optimizers=(optimizer, None)` keeps the Trainer's own schedule and clipping.

    python examples/clients/transformers_trainer.py

A tiny GPT-2 with random weights learns to count. Needs `pip install ".[clients]"`.
"""

import tempfile

import torch
from beside import compare
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.set_num_threads(1)


def train(optimizer_class: type) -> torch.nn.Module:
    size = {"vocab_size": 32, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**size, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    lines = [(torch.arange(16) + start) % 32 for start in range(32)] * 10
    optimizer = optimizer_class(model.parameters(), lr=1e-3, alpha=0.9)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=8,
            max_grad_norm=1.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        data = [{"input_ids": line, "labels": line} for line in lines]
        Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    return model


compare(train)
