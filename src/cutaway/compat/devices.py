"""The dialect's `utilities.devices`: which device is free, and where the layers of a model lie on several."""

from __future__ import annotations

from typing import Any

import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError

__all__ = [
    "AvailableDeviceMemory",
    "calculate_available_device_cuda_memory",
    "determine_available_memory_for_available_devices",
    "get_best_available_cuda_device",
    "get_best_available_device",
    "get_device_for_block_index",
    "move_to_and_update_config",
    "sort_devices_based_on_available_memory",
]

AvailableDeviceMemory = list[tuple[int, int]]
"""Pairs of a CUDA device's number and its free memory in bytes."""


def calculate_available_device_cuda_memory(i: int) -> int:
    """Bytes of a CUDA device that this process could still allocate, if it were alone on it."""
    return int(torch.cuda.get_device_properties(i).total_memory - torch.cuda.memory_allocated(i))


def determine_available_memory_for_available_devices(max_devices: int) -> AvailableDeviceMemory:
    """The first so many CUDA devices with their free memory."""
    return [(i, calculate_available_device_cuda_memory(i)) for i in range(max_devices)]


def sort_devices_based_on_available_memory(devices: AvailableDeviceMemory) -> AvailableDeviceMemory:
    """Most free memory first."""
    return sorted(devices, key=lambda pair: pair[1], reverse=True)


def get_best_available_cuda_device(max_devices: int | None = None) -> torch.device:
    """The CUDA device with the most free memory.

    Raises:
        ConfigError: there is none.
    """
    devices = determine_available_memory_for_available_devices(torch.cuda.device_count() if max_devices is None else max_devices)
    if not devices:
        raise ConfigError("the configuration asks for CUDA, and no CUDA device is there; use device='cpu'")
    return torch.device("cuda", sort_devices_based_on_available_memory(devices)[0][0])


def get_best_available_device(cfg: HookedTransformerConfig) -> torch.device:
    """The configuration's device, or the freest of several."""
    device = torch.device(str(cfg.device))
    return get_best_available_cuda_device(cfg.n_devices) if device.type == "cuda" and cfg.n_devices > 1 else device


def get_device_for_block_index(index: int, cfg: HookedTransformerConfig, device: Any = None) -> torch.device:
    """Where a layer lies when layers are spread evenly over `cfg.n_devices`."""
    first = torch.device(str(cfg.device) if device is None else device)
    if first.type == "cpu":
        return first
    return torch.device(first.type, (first.index or 0) + index // (cfg.n_layers // cfg.n_devices))


def move_to_and_update_config(model: Any, device_or_dtype: Any, print_details: bool = True) -> Any:
    """Move a model to a device or a precision; its configuration follows."""
    return model.to(device_or_dtype, print_details=print_details) if hasattr(model, "cfg") else model.to(device_or_dtype)
