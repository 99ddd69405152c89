"""The dialect's `utils`: small functions that notebooks call, most of them cutaway's own under the names known there."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich import print as rich_print
from rich.markup import escape
from torch import Tensor, nn

from cutaway import tokens as text
from cutaway.compat.defaults import (
    USE_DEFAULT_VALUE,
    LocallyOverridenDefaults,
    get_nested_attr,
    override_or_use_default_value,
    set_nested_attr,
)
from cutaway.compat.text_data import (
    CACHE_DIR,
    clear_huggingface_cache,
    download_file_from_hf,
    get_dataset,
    get_input_with_manually_prepended_bos,
    get_tokenizer_with_bos,
    get_tokens_with_bos_removed,
    keep_single_column,
    tokenize_and_concatenate,
)
from cutaway.errors import ShapeError
from cutaway.model.attention import project
from cutaway.model.factored_matrix import FactoredMatrix, composition_scores
from cutaway.model.losses import next_token_loss
from cutaway.model.mlp import ACTIVATIONS, gelu_fast, gelu_new, solu
from cutaway.model.positions import offset_positions
from cutaway.model.sites import get_act_name
from cutaway.model.slices import Slice, SliceInput
from cutaway.runs.generation import sample_logits

__all__ = [
    "ACTIVATION_FN_DICT",
    "CACHE_DIR",
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "batch_addmm",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "clear_huggingface_cache",
    "complex_attn_linear",
    "composition_scores",
    "download_file_from_hf",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_input_with_manually_prepended_bos",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokenizer_with_bos",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_library_available",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "sample_logits",
    "select_compatible_kwargs",
    "set_nested_attr",
    "simple_attn_linear",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
    "vanilla_addmm",
]

ACTIVATION_FN_DICT = ACTIVATIONS
gelu_pytorch_tanh = gelu_new


class _OwnNames(type):
    """A class whose attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class T(metaclass=_OwnNames):
    """Names of axes, as the oldest notebooks wrote them into types: `T.batch` is "batch"."""


# Arrays.


def simple_attn_linear(input: Tensor, w: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]) -> Tensor:
    """`input @ w + b` for each head, from an input `[batch, pos, d_model]` that they share."""
    return project(input, w, b)


def complex_attn_linear(input: Tensor, w: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]) -> Tensor:
    """The same from an input of each head, `[batch, pos, head, d_model]`."""
    return project(input, w, b)


def vanilla_addmm(input: Tensor, mat1: Float[Tensor, "m n"], mat2: Float[Tensor, "n o"]) -> Float[Tensor, "m o"]:
    """`input + mat1 @ mat2`."""
    return torch.addmm(input, mat1, mat2)


def batch_addmm(bias: Float[Tensor, "#d_out"], weight: Float[Tensor, "d_in d_out"], x: Float[Tensor, "... d_in"]) -> Tensor:
    """`x @ weight + bias`, with any leading axes."""
    return torch.addmm(bias, x.flatten(0, -2), weight).view(*x.shape[:-1], weight.shape[-1])


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, a number or a (nested) list of them as a NumPy array.

    Raises:
        ShapeError: it is none of these.
    """
    if isinstance(tensor, Tensor):
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(tensor, list | tuple):
        return np.array([to_numpy(one) if isinstance(one, Tensor) else one for one in tensor])
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, int | float | bool | str | np.generic):
        return np.array(tensor)
    raise ShapeError(f"to_numpy takes tensors, arrays, lists and numbers, not a {type(tensor).__name__}")


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first `n` entries along every axis, to have a look; a factored matrix is multiplied out there."""
    if isinstance(tensor, FactoredMatrix):
        return tensor.get_corner(n)
    return tensor[tuple(slice(n) for _ in tensor.shape)]


def remove_batch_dim(tensor: Float[Tensor, "batch ..."]) -> Float[Tensor, "..."]:
    """The tensor without its first axis, where that has one entry; otherwise as it is."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def transpose(tensor: Float[Tensor, "... a b"]) -> Float[Tensor, "... b a"]:
    """The last two axes swapped."""
    return tensor.transpose(-1, -2)


def is_square(x: Tensor) -> bool:
    """Whether this is a matrix with as many rows as columns."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether this is a square matrix with nothing above its diagonal."""
    return is_square(x) and torch.equal(x, x.tril())


def check_structure(t1: Tensor, t2: Tensor, *, verbose: bool = False) -> None:
    """Print whether two matrices go up and down alike, from each row to the next and from each column to the next.

    Raises:
        ShapeError: they are no matrices of one shape.
    """
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise ShapeError(f"check_structure compares two matrices of one shape, not {tuple(t1.shape)} and {tuple(t2.shape)}")
    differs = {}
    for name, one, other in (("row", t1, t2), ("column", t1.T, t2.T)):
        falls, falls_too = one[:-1] >= one[1:], other[:-1] >= other[1:]
        differs[name] = torch.nonzero((falls != falls_too).any(-1)).flatten().tolist()
        if verbose:
            print(f"Checking {name}s")
            for at in differs[name]:
                print(f"\t{name}s {at}:{at + 1}\n\tt1: {falls[at].tolist()}\n\tt2: {falls_too[at].tolist()}")
    if not any(differs.values()):
        print("PASSED")
    for name, found in differs.items():
        if found:
            print(f"{name} mismatch: {found}")


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """The running sum along an axis, from its end with `reverse`."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def repeat_along_head_dimension(
    tensor: Float[Tensor, "batch pos d_model"], n_heads: int, clone_tensor: bool = True
) -> Float[Tensor, "batch pos head d_model"]:
    """The same vector for every head; a view unless `clone_tensor`."""
    repeated = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], n_heads, tensor.shape[-1])
    return repeated.clone() if clone_tensor else repeated


# What a model says.


def lm_cross_entropy_loss(
    logits: Float[Tensor, "*batch pos d_vocab"],
    tokens: Int[Tensor, "*batch pos"],
    attention_mask: Int[Tensor, "*batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "*batch previous"]:
    """The loss (nats) of predicting each next token: its mean, or one per position but the last with `per_token`.

    Where `attention_mask` is 0 at a position or the next, that position counts nothing.
    """
    if tokens.ndim == 1:
        mask = None if attention_mask is None else attention_mask.reshape(1, -1)
        loss = next_token_loss(logits.reshape(1, *logits.shape[-2:]), tokens[None], mask, per_token)
        return loss[0] if per_token else loss
    return next_token_loss(logits, tokens, attention_mask, per_token)


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Float[Tensor, ""] | Bool[Tensor, "batch previous"]:
    """How often the likeliest next token is the right one; with `per_token`, whether it is, at each position but the last."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:].to(logits.device)
    return right if per_token else right.sum() / right.numel()


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = USE_DEFAULT_VALUE,
    top_k: int = 10,
) -> None:
    """Print how well a model continues `prompt` with `answer`: rank, logit and probability of each of its tokens.

    Of several answers only the first token of each is compared, all at the position after the prompt.
    """
    several = not isinstance(answer, str) and len(answer) > 1
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [one if one.startswith(" ") else f" {one}" for one in answers]
    words = [model.to_str_tokens(one, prepend_bos=False) for one in answers]
    prompt_words = model.to_str_tokens(prompt, prepend_bos=prepend_bos)
    wanted = model.to_tokens(answers, prepend_bos=False)[:, : 1 if several else None]
    before = model.to_tokens(prompt, prepend_bos=prepend_bos)
    tokens = torch.cat([before.repeat(len(answers), 1), wanted], dim=1)
    if print_details:
        print("Tokenized prompt:", prompt_words)
        print("Tokenized answers:" if several else "Tokenized answer:", words if several else words[0])
    with torch.no_grad():
        logits = model(tokens)
    ranks: list[Any] = []
    for step in range(wanted.shape[1]):
        here = logits[:, before.shape[1] + step - 1].cpu()
        probs, order = here.softmax(-1).sort(descending=True)
        places = order.argsort(-1).gather(1, wanted[:, step : step + 1].cpu())[:, 0].tolist()
        words_here = [one[step] for one in words]
        ranks.append(list(zip(words_here, places, strict=True)) if several else (words_here[0], places[0]))
        if print_details:
            rich_print(f"Performance on answer token{'s' if several else ''}:")
            for row, (word, place) in enumerate(zip(words_here, places, strict=True)):
                token = int(wanted[row, step])
                line = f"Rank: {place: <8} Logit: {here[row, token]:5.2f} Prob: {probs[row, place]:6.2%} Token: |{word}|"
                rich_print(f"[b]{escape(line)}[/b]")
            for place in range(min(top_k, order.shape[1])):
                token = int(order[0, place])
                word = model.to_string([token])
                print(f"Top {place}th token. Logit: {here[0, token]:5.2f} Prob: {probs[0, place]:6.2%} Token: |{word}|")
    rich_print(f"[b]Ranks of the answer tokens:[/b] {escape(str(ranks))}")


test_prompt.__test__ = False  # type: ignore[attr-defined]  # its name makes pytest take it for a test


# Tokens and positions.


def get_attention_mask(tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool) -> Int[Tensor, "batch pos"]:
    """Which tokens are real (1) and which padding (0), on the side where the tokenizer pads."""
    side = getattr(tokenizer, "padding_side", "right")
    return text.attention_mask(tokenizer, tokens, prepend_bos=prepend_bos, padding_side=side)


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: Int[Tensor, "batch key"]) -> Int[Tensor, "batch pos"]:
    """Positions that count tokens only, of those after the first `past_kv_pos_offset`."""
    return offset_positions(attention_mask.bool())[:, past_kv_pos_offset:]


# Machines and libraries.


def get_device() -> torch.device:
    """The GPU, where there is one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def print_gpu_mem(step_name: str = "") -> None:
    """Print how much memory tensors take on the GPU."""
    print(f"{step_name} ~ {torch.cuda.memory_allocated() / 2**30:.2f} GiB allocated on GPU.")


def is_library_available(name: str) -> bool:
    """Whether a package could be imported."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def select_compatible_kwargs(kwargs_dict: dict[str, Any], callable: Callable[..., Any]) -> dict[str, Any]:
    """Those of the arguments that a function has a parameter for."""
    known = inspect.getfullargspec(callable).args
    return {name: value for name, value in kwargs_dict.items() if name in known}


# Initial weights, for matrices that multiply on the right.


def calc_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """How many numbers each output of a weight reads, and each input feeds: of a bias `[out]`, a matrix `[in, out]`,
    or the weights of heads `[head, in, out]`.
    """
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= 3:
        raise ShapeError(f"fan in and fan out are those of 1 to 3 axes, not of {shape}")
    heads = shape[0] if len(shape) == 3 else 1
    return (shape[-2] if len(shape) > 1 else 1), heads * shape[-1]


def init_xavier_uniform_(param: Tensor, gain: float | int = 1.0) -> Tensor:
    """Fill in place, uniformly, with variance gain² · 2 / (fan in + fan out)."""
    edge = gain * (6 / sum(calc_fan_in_and_fan_out(param))) ** 0.5
    return nn.init.uniform_(param, -edge, edge)


def init_xavier_normal_(param: Tensor, gain: float | int = 1.0) -> Tensor:
    """Fill in place, normally, with variance gain² · 2 / (fan in + fan out)."""
    return nn.init.normal_(param, std=gain * (2 / sum(calc_fan_in_and_fan_out(param))) ** 0.5)


def _kaiming(param: Tensor, a: float | int, nonlinearity: Any, gain: float | int, mode: str) -> float:
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    return gain * nn.init.calculate_gain(nonlinearity, a) / (fan_in if mode == "fan_in" else fan_out) ** 0.5


def init_kaiming_uniform_(
    param: Tensor, a: float | int = 0, nonlinearity: str = "relu", gain: float | int = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Fill in place, uniformly, so that the scale survives this nonlinearity (`mode` says in which direction)."""
    edge = 3**0.5 * _kaiming(param, a, nonlinearity, gain, mode)
    return nn.init.uniform_(param, -edge, edge)


def init_kaiming_normal_(
    param: Tensor, a: float | int = 0, nonlinearity: str = "relu", gain: float | int = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Fill in place, normally, so that the scale survives this nonlinearity (`mode` says in which direction)."""
    return nn.init.normal_(param, std=_kaiming(param, a, nonlinearity, gain, mode))
