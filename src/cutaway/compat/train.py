"""The dialect's `train`: next-token training on a data set of tokens, with a plain loop.

(For a model that is to be made again by others, with a card and a resumable state, see `cutaway train`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from cutaway.compat.utils import get_device
from cutaway.errors import ConfigError
from cutaway.writing import replacing

__all__ = ["HookedTransformerTrainConfig", "train"]


@dataclass
class HookedTransformerTrainConfig:
    """How to train: see `train`. `print_every`, `save_every` and `max_steps` count batches of an epoch."""

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"
    device: str | torch.device | None = None
    warmup_steps: int = 0
    save_every: int | None = None
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None


@torch.enable_grad()
def train(model: Any, config: HookedTransformerTrainConfig, dataset: Any) -> Any:
    """Train on examples `{"tokens": [pos]}`; returns the same model, trained in place.

    Raises:
        ConfigError: an optimizer that is not known.
        ModuleNotFoundError: `wandb=True`, and the package is not installed.
    """
    torch.manual_seed(config.seed)
    model.train()
    log = _wandb(config) if config.wandb else None
    config.device = get_device() if config.device is None else config.device
    optimizer = _optimizer(model, config)
    warmup = max(config.warmup_steps, 1)
    scheduler = (
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / warmup)) if config.warmup_steps > 0 else None
    )
    batches = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    model.to(config.device)
    for epoch in range(1, config.num_epochs + 1):
        samples = 0
        for step, batch in enumerate(batches):
            tokens = batch["tokens"].to(config.device)
            loss = model(tokens, return_type="loss")
            loss.backward()
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
            samples += len(tokens)
            if log is not None:
                log({"train_loss": loss.item(), "samples": samples, "epoch": epoch})
            if config.print_every is not None and step % config.print_every == 0:
                print(f"Epoch {epoch} Samples {samples} Step {step} Loss {loss.item()}")
            if config.save_every is not None and config.save_dir is not None and step % config.save_every == 0:
                with replacing(Path(config.save_dir) / f"model_{step}.pt") as file:
                    torch.save(model.state_dict(), file)
            if config.max_steps is not None and step >= config.max_steps:
                break
    return model


def _optimizer(model: Any, config: HookedTransformerTrainConfig) -> torch.optim.Optimizer:
    """Adam (AdamW where there is weight decay) or SGD."""
    if config.optimizer_name in ("Adam", "AdamW"):
        if config.weight_decay is None:
            return torch.optim.Adam(model.parameters(), lr=config.lr)
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer_name == "SGD":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay or 0.0, momentum=config.momentum
        )
    raise ConfigError(f"optimizer_name={config.optimizer_name!r} is not known; there are Adam, AdamW and SGD")


def _wandb(config: HookedTransformerTrainConfig) -> Any:
    """The function that logs to Weights & Biases."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise ModuleNotFoundError("wandb=True needs the package wandb: pip install wandb", name="wandb") from None
    config.wandb_project_name = config.wandb_project_name or "easy-transformer"
    wandb.init(project=config.wandb_project_name, config=vars(config))
    return wandb.log
