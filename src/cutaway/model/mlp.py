"""MLPs: plain, gated, and mixtures of them; and the activation functions by their names.

Sites: `hook_pre` and `hook_post` around the activation function, `hook_pre_linear` for the other half of a
gated MLP, `hook_mid` before the norm that activations ending in `_ln` have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.axes import Neurons, Resid
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.hook_points import HookPoint
from cutaway.model.norm import LayerNorm, LayerNormPre
from cutaway.model.products import empty_weights, linear


def solu(x: Tensor) -> Tensor:
    """Softmax linear unit (https://transformer-circuits.pub/2022/solu)."""
    return x * x.softmax(-1)


def gelu_fast(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, with the constant rounded as its authors' code has it."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU (https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


Number = float | Tensor


def xielu(x: Tensor, alpha_p: Number = 0.8, alpha_n: Number = 0.8, beta: float = 0.5, eps: float = -1e-6) -> Tensor:
    """The integral of trainable ELUs (https://arxiv.org/abs/2411.13010), with the parameters that its training begins with."""
    positive = alpha_p * x * x + beta * x
    return torch.where(x > 0, positive, (torch.expm1(x.clamp(max=eps)) - x) * alpha_n + beta * x)


class XIELU(nn.Module):
    """xIELU whose curvatures are trained, and kept as what `softplus` makes positive; `beta` is a constant."""

    def __init__(
        self, alpha_p_init: float = 0.8, alpha_n_init: float = 0.8, beta_init: float = 0.5, eps: float = -1e-6,
        dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__()
        inverse = [torch.tensor([value]).expm1().log().to(dtype) for value in (alpha_p_init, alpha_n_init - beta_init)]
        self.alpha_p, self.alpha_n = (nn.Parameter(value) for value in inverse)
        self.beta, self.eps = beta_init, eps

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each number."""
        return xielu(x, F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n), self.beta, self.eps)


gelu_new = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": relu2,
    "gelu": F.gelu,
    "gelu_ln": F.gelu,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": F.silu,
    "solu": solu,
    "solu_ln": solu,
    "xielu": xielu,
}


class CanBeUsedAsMLP(nn.Module):
    """What MLPs have in common; by itself, it hands its input on. Subclasses of others' may stand in an MLP's place.

    Raises:
        ConfigError: the configuration has no `d_mlp`.
    """

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        if self.cfg.d_mlp is None:
            raise ConfigError("an MLP needs d_mlp, the number of its neurons; the configuration leaves it open")
        self.d_mlp = self.cfg.d_mlp

    def select_activation_function(self) -> None:
        """Set `act_fn` as the configuration says, and `hook_mid` and `ln` where the activations are normalised."""
        cfg = self.cfg
        assert cfg.act_fn is not None
        self.act_fn = XIELU(dtype=cfg.torch_dtype) if cfg.act_fn == "xielu" else ACTIVATIONS[cfg.act_fn]
        if cfg.has_mlp_norm:
            self.hook_mid = HookPoint()
            self.ln = LayerNorm(cfg, cfg.d_mlp) if cfg.normalization_type == "LN" else LayerNormPre(cfg, cfg.d_mlp)

    def forward(self, x: Resid) -> Resid:
        """What the MLP writes, `[batch, pos, d_model]`."""
        return x


class MLP(CanBeUsedAsMLP):
    """Two matrices with an activation function between them."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__(cfg)
        self._make_weights(self.cfg.d_model, self.d_mlp, self.cfg.torch_dtype)
        self.select_activation_function()
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def _make_weights(self, d_model: int, d_mlp: int, dtype: torch.dtype) -> None:
        """The parameters, in the order in which the dialect lists them and draws initial weights."""
        self.W_in = nn.Parameter(empty_weights(d_model, d_mlp, dtype))
        self.b_in = nn.Parameter(torch.zeros(d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(empty_weights(d_mlp, d_model, dtype))
        self.b_out = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Resid) -> Resid:
        """What the MLP writes, `[batch, pos, d_model]`."""
        return self.output(self.post(self.pre(x)))

    # Its steps.

    def pre(self, x: Resid) -> Neurons:
        """What the activation function is given."""
        return self.hook_pre(linear(x, self.W_in, self.b_in))

    def post(self, pre: Neurons) -> Neurons:
        """The neurons' activations, after the norm that some have."""
        return self.hook_post(self._normed(self.act_fn(pre)))

    def output(self, post: Neurons) -> Resid:
        """What the neurons write."""
        return linear(post, self.W_out, self.b_out)

    @property
    def halves(self) -> tuple[Callable[[Resid], Neurons], ...]:
        """The projections that a neuron reads the stream by."""
        return (self.pre,)

    def post_apart(self, x: Resid, neuron: int, apart: Resid) -> Neurons:
        """`post` where one neuron reads `apart` and all others read `x`; a norm over the neurons sees both."""
        read = [half(x).clone() for half in self.halves]
        for own, half in zip(read, self.halves, strict=True):
            own[..., neuron] = half(apart)[..., neuron]
        return self.post(*read)

    def fold_norm(self) -> None:
        """Replace the norm of the activations by one without weights."""
        self.ln = LayerNormPre(self.cfg, self.cfg.d_mlp)

    def _normed(self, neurons: Neurons) -> Neurons:
        out: Tensor = self.ln(self.hook_mid(neurons)) if self.cfg.has_mlp_norm else neurons
        return out


class GatedMLP(MLP):
    """An MLP whose activations gate a second, linear projection (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__(cfg)
        self.hook_pre_linear = HookPoint()

    def _make_weights(self, d_model: int, d_mlp: int, dtype: torch.dtype) -> None:
        self.W_in = nn.Parameter(empty_weights(d_model, d_mlp, dtype))
        self.W_out = nn.Parameter(empty_weights(d_mlp, d_model, dtype))
        self.W_gate = nn.Parameter(empty_weights(d_model, d_mlp, dtype))
        more = self.cfg.gated_mlp_biases
        self.b_gate, self.b_up = (nn.Parameter(torch.zeros(d_mlp, dtype=dtype)) if more else None for _ in range(2))
        self.b_in = nn.Parameter(torch.zeros(d_mlp, dtype=dtype))
        self.b_out = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Resid) -> Resid:
        """What the MLP writes, `[batch, pos, d_model]`."""
        return self.output(self.post(self.pre(x), self.pre_linear(x)))

    @property
    def halves(self) -> tuple[Callable[[Resid], Neurons], ...]:
        return (self.pre, self.pre_linear)

    def pre(self, x: Resid) -> Neurons:
        """What the activation function is given: the gate."""
        return self.hook_pre(linear(x, self.W_gate, self.b_gate))

    def pre_linear(self, x: Resid) -> Neurons:
        """What the gate multiplies."""
        return self.hook_pre_linear(linear(x, self.W_in, self.b_up))

    def post(self, pre: Neurons, pre_linear: Neurons) -> Neurons:  # type: ignore[override]
        """The neurons' activations, after the norm that some have."""
        return self.hook_post(self._normed(torch.addcmul(self.b_in, self.act_fn(pre), pre_linear)))


class Expert(nn.Module):
    """One MLP of a mixture: as `MLP` or `GatedMLP`, without sites."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        d_mlp = cfg.d_mlp_expert or cfg.d_mlp
        assert d_mlp is not None and cfg.act_fn is not None
        self.act_fn, self.gated = ACTIVATIONS[cfg.act_fn], cfg.gated_mlp
        dtype = cfg.torch_dtype
        self.W_in = nn.Parameter(empty_weights(cfg.d_model, d_mlp, dtype))
        if cfg.gated_mlp:
            self.W_gate = nn.Parameter(empty_weights(cfg.d_model, d_mlp, dtype))
        self.b_in = nn.Parameter(torch.zeros(d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(empty_weights(d_mlp, cfg.d_model, dtype))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model, dtype=dtype))

    def forward(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What this expert writes for some tokens."""
        if self.gated:
            neurons = self.act_fn(linear(x, self.W_gate)) * linear(x, self.W_in) + self.b_in
        else:
            neurons = self.act_fn(linear(x, self.W_in, self.b_in))
        return linear(neurons, self.W_out, self.b_out)


class MoE(CanBeUsedAsMLP):
    """A mixture of experts: a router sends each token to a few MLPs and mixes what they write."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__(cfg)
        cfg = self.cfg
        assert cfg.num_experts is not None
        self.W_gate = nn.Parameter(empty_weights(cfg.d_model, cfg.num_experts, cfg.torch_dtype))
        self.experts = nn.ModuleList(Expert(cfg) for _ in range(cfg.num_experts))
        self.hook_expert_weights, self.hook_expert_indices = HookPoint(), HookPoint()

    def forward(self, x: Resid) -> Resid:
        """What the chosen experts write, weighted by the router, `[batch, pos, d_model]`."""
        assert self.cfg.experts_per_token is not None
        weights = self.hook_expert_weights(linear(x, self.W_gate).softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)))
        chosen, indices = weights.topk(self.cfg.experts_per_token, dim=-1)
        indices = self.hook_expert_indices(indices)
        chosen = weights.gather(-1, indices)
        if self.cfg.norm_topk_prob:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        rows, out = x.flatten(0, -2), torch.zeros_like(x).flatten(0, -2)
        indices, chosen = indices.flatten(0, -2), chosen.flatten(0, -2).to(x.dtype)
        for number, expert in enumerate(self.experts):
            tokens, slot = (indices == number).nonzero(as_tuple=True)
            if len(tokens):
                out = out.index_add(0, tokens, expert(rows[tokens]) * chosen[tokens, slot, None])
        return out.view_as(x)


def mlp_of(cfg: HookedTransformerConfig, layer: int) -> nn.Module:
    """The MLP that a configuration asks for in a layer."""
    if cfg.is_moe(layer):
        return MoE(cfg)
    return GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
