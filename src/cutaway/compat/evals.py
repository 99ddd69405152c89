"""The dialect's `evals`: quick measures of a language model. Those on published texts need `datasets` and the network."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cutaway.compat.mmlu import MMLU_ANSWER_LETTERS, MMLU_SUBJECTS, make_mmlu_data_loader, mmlu_eval
from cutaway.compat.text_data import load_dataset, tokenize_and_concatenate
from cutaway.compat.utils import lm_cross_entropy_loss
from cutaway.errors import ShapeError

__all__ = [
    "DATASET_LOADERS",
    "DATASET_NAMES",
    "MMLU_ANSWER_LETTERS",
    "MMLU_SUBJECTS",
    "IOIDataset",
    "evaluate",
    "evaluate_on_dataset",
    "induction_loss",
    "ioi_eval",
    "make_code_data_loader",
    "make_mmlu_data_loader",
    "make_owt_data_loader",
    "make_pile_data_loader",
    "make_wiki_data_loader",
    "mmlu_eval",
    "sanity_check",
]

# The first sentences of "Zoom In" (Olah et al. 2020), which the dialect's check has always been made on.
SANITY_TEXT = (
    "Many important transition points in the history of science have been moments when science 'zoomed in.' At these points, "
    "we develop a visualization or tool that allows us to see the world in a new level of detail, and a new field of science "
    "develops to study the world through this lens."
)


def sanity_check(model: Any) -> Float[Tensor, ""]:
    """The loss (nats) on two sentences: below 5 for a language model that works, above 7 for one that does not."""
    loss: Tensor = model(SANITY_TEXT, return_type="loss")
    return loss


# Published texts.


def _loader(tokenizer: Any, batch_size: int, *where: str, column_name: str = "text") -> DataLoader[Any]:
    data = load_dataset(*where, split="train")
    print(len(data))
    rows = tokenize_and_concatenate(data, tokenizer, column_name=column_name)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True)


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Batches of Wikitext 2 (its training part, the largest)."""
    return _loader(tokenizer, batch_size, "wikitext", "wikitext-2-v1")


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Batches of 10,000 pages of OpenWebText."""
    return _loader(tokenizer, batch_size, "stas/openwebtext-10k")


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Batches of 10,000 texts of the Pile."""
    return _loader(tokenizer, batch_size, "NeelNanda/pile-10k")


def make_code_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Batches of Python code."""
    return _loader(tokenizer, batch_size, "codeparrot/codeparrot-valid-v2-near-dedup", column_name="content")


DATASET_NAMES = ["wiki", "owt", "pile", "code"]
DATASET_LOADERS: list[Callable[..., DataLoader[Any]]] = [
    make_wiki_data_loader,
    make_owt_data_loader,
    make_pile_data_loader,
    make_code_data_loader,
]


@torch.inference_mode()
def evaluate_on_dataset(model: Any, data_loader: Iterable[Any], truncate: int = 100, device: Any = None) -> float:
    """The mean loss (nats) over batches `{"tokens": [batch, pos]}`, at most `truncate` + 1 of them.

    Raises:
        ShapeError: there are no batches.
    """
    losses: list[float] = []
    for batch in data_loader:
        losses.append(model(batch["tokens"].to(device or model.cfg.device), return_type="loss").mean().item())
        if len(losses) > truncate:
            break
    if not losses:
        raise ShapeError("there are no batches to measure on; are there fewer rows than batch_size?")
    return sum(losses) / len(losses)


def evaluate(model: Any, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None) -> dict[str, float]:
    """The mean loss on each of the published texts, as `wiki_loss` and so on."""
    losses = {}
    for name, make in zip(DATASET_NAMES, DATASET_LOADERS, strict=True):
        loss = evaluate_on_dataset(model, make(tokenizer=tokenizer or model.tokenizer, batch_size=batch_size), truncate=truncate)
        print(f"{name}: {loss}")
        losses[f"{name}_loss"] = loss
    return losses


# Induction.


@torch.inference_mode()
def induction_loss(
    model: Any,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: Any = None,
) -> Float[Tensor, ""]:
    """The loss (nats) on the second half of random tokens that are said twice: low where there are induction heads.

    The tokens are drawn from 100 to 20,000, or as far as the vocabulary goes. BOS replaces the first one.
    """
    device = device or model.cfg.device
    most = min(20_000, model.cfg.d_vocab)
    half = torch.randint(min(100, most - 1), most, (batch_size, subseq_len)).to(device)
    tokens = half.repeat(1, 2)
    if model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
        tokens[:, 0] = (tokenizer or model.tokenizer).bos_token_id
    losses = lm_cross_entropy_loss(model(tokens, return_type="logits"), tokens, per_token=True)
    return losses[:, subseq_len + 1 :].mean()


# Indirect objects.


class IOIDataset(Dataset[dict[str, Tensor]]):
    """Sentences whose last word is the indirect object: `prompt`, `IO` and `S` as tokens.

    In a template `[A]` is the indirect object, `[B]` the subject, other words in brackets come from `nouns`.
    As in the dialect, every sentence is drawn from the same seed, so that all are alike; with a `seed` of your own they
    differ. Source of the task: https://arxiv.org/abs/2211.00593
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ):
        self._draw = random.Random(seed) if seed is not None else None
        self.tokenizer, self.prepend_bos = tokenizer, prepend_bos
        self.templates = list(templates) if templates is not None else self.get_default_templates()
        self.names = list(names) if names is not None else self.get_default_names()
        self.nouns = nouns if nouns is not None else self.get_default_nouns()
        draws = num_samples // 2 if symmetric else num_samples
        self.samples = [sample for _ in range(draws) for sample in self.get_sample(symmetric=symmetric)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        front = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        ids = {"prompt": front + list(self.tokenizer.encode(sample["text"]))}
        ids |= {who: list(self.tokenizer.encode(sample[who])) for who in ("IO", "S")}
        return {name: torch.tensor(tokens, dtype=torch.long) for name, tokens in ids.items()}

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """A sentence with its names; with `symmetric`, also the one with the names exchanged."""
        draw = self._draw or random.Random(42)
        template = draw.choice(self.templates)
        for noun, words in self.nouns.items():
            template = template.replace(f"[{noun}]", draw.choice(words))
        pair = draw.sample(self.names, 2)
        orders = [pair, pair[::-1]] if symmetric else [pair]
        return [{"text": template.replace("[A]", io).replace("[B]", s), "IO": f" {io}", "S": f" {s}"} for io, s in orders]

    @staticmethod
    def get_default_names() -> list[str]:
        """The names that are drawn from."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """The sentences that are drawn from (those of the dialect, as its numbers depend on them)."""
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """The words that are drawn from."""
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


@torch.inference_mode()
def ioi_eval(
    model: Any,
    dataset: Any = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
) -> dict[str, float]:
    """How much higher the logit of the indirect object is than that of the subject, on average, and how often it is higher.

    They are compared where their tokens first differ.
    """
    if dataset is None:
        dataset = IOIDataset(tokenizer or model.tokenizer, num_samples=num_samples, symmetric=symmetric)
    differences: list[float] = []
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        prompts = torch.nn.utils.rnn.pad_sequence([sample["prompt"] for sample in samples], batch_first=True)
        logits = model(prompts, return_type="logits")
        for row, sample in zip(logits, samples, strict=True):
            io, s = sample["IO"], sample["S"]
            length = min(len(io), len(s))
            apart = torch.nonzero(io[:length] != s[:length]).flatten()
            if not len(apart):
                raise ShapeError("the tokens of the two names do not differ, so there is nothing to compare")
            first = int(apart[0])
            at = len(sample["prompt"]) - len(io) + first - 1
            differences.append((row[at, io[first]] - row[at, s[first]]).item())
    count = len(differences)
    return {"Logit Difference": sum(differences) / count, "Accuracy": sum(one > 0 for one in differences) / count}
