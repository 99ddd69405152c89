"""What this machine is, and which kernels multiply on it: the facts that a report of a fault or of a time needs."""

from __future__ import annotations

import json
import platform
from typing import Any

from cutaway.commands import console
from cutaway.commands.shared import lines


def about(*, as_json: bool) -> None:
    """Print versions, processor, threads, and each class of products with its kernel and the rates of all."""
    found = facts()
    if as_json:
        console.echo(json.dumps(found, indent=2))
        return
    console.echo(lines(["what", "here"], [[name, value] for name, value in found.items() if not isinstance(value, list)]))
    if not found["products"]:
        console.echo("\nProducts are F.linear everywhere, as CUTAWAY_KERNELS=torch says.")
        return
    console.echo("\nProducts, in billions of operations per second:\n")
    rows = [
        [one["class"], one["kernel"], ", ".join(f"{name} {rate:.0f}" for name, rate in one["rates"].items())]
        for one in found["products"]
    ]
    console.echo(lines(["class", "kernel", "measured"], rows))


def facts() -> dict[str, Any]:
    """The same as data."""
    import torch

    from cutaway import __version__
    from cutaway.model import kernel_choices, kernels

    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cutaway": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": kernel_choices.processor(),
        "instructions": kernel_choices.capability(),
        "threads": torch.get_num_threads(),
        "graphics cards": ", ".join(cards) or "none",
        "choices kept in": str(kernel_choices.folder()),
        "products": [
            {
                "class": f"{words} ({kernels.STANDARD[words].key})",
                "kernel": kernels.NAMES[one.kernel],
                "rates": {kernels.NAMES[name]: round(rate, 1) for name, rate in one.rates.items()},
            }
            for words, one in kernels.standard().items()
        ],
    }
