"""A study: one model on the prompts of one behaviour, and the runs that several questions read, each computed once.

Answers are numbered in the order of their places (example by example, position by position); `[answer]` is that axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis import attribution, token_roles
from cutaway.analysis.answers import SHOWN, ModelAnswers
from cutaway.analysis.shared import head_names
from cutaway.analysis.token_roles import TokenRoles
from cutaway.model.frozen_norms import norms_of
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.answer_metrics import AnswerMetric
from cutaway.runs.estimates import Value
from cutaway.runs.sweep import SweepResult
from cutaway.tasks.behaviour import Behaviour
from cutaway.tasks.given import LARGE


@dataclass(frozen=True, eq=False)
class Study(ModelAnswers):
    """What is asked about.

    Args:
        behaviour: names of classes, sources, features and mistakes; None where only prompts are known.
        vocab: what tokens are called; None: as the tokenizer says, or by number.
        above: the answer is every token whose logit is above 0; else it is the likeliest token.
        sweeps: the sweeps that were made, by name, for a record.
    """

    model: Transformer
    prompts: Prompts
    behaviour: Behaviour
    vocab: Sequence[str] | None = None
    above: bool = False
    seed: int = 0
    sweeps: dict[str, SweepResult] = field(default_factory=dict)

    # Answers.

    @property
    def large(self) -> bool:
        """Whether the model is so large that fewer things are run."""
        return sum(one.numel() for one in self.model.parameters()) > LARGE

    @property
    def mask(self) -> Tensor:
        return self.prompts.mask.long()

    @cached_property
    def logits(self) -> Float[Tensor, "answer d_vocab"]:
        """The model's logits at its answers."""
        return self.logits_at(self.cache[self.streams[-1]])

    @cached_property
    def response(self) -> Value | None:
        """How often the right answers lead by more than they do in the counterpart; None where there are no pairs."""
        if self.prompts.corrupted is None or not bool(self.paired.any()):
            return None
        other = self.logits_at(self.run(self.corrupted, self.streams[-1:])[self.streams[-1]])
        return self.over(self.lead > (other * self.contrast).sum(1), self.paired)

    @property
    def at_chance(self) -> bool:
        """Whether the model answers no better than one that always says the same, and prefers no right answer to a wrong one.

        Where nearly every answer is the same, a model that gives them is not at chance.
        """
        prefers = self.preference is not None and self.preference.above(self.coin.value)
        # Where one answer is right nearly everywhere (a later year), only what changes with the prompt tells.
        changes = self.chance.value > 0.9 and self.response is not None and self.response.above(0.5)
        responds = changes or (self.telling is not None and self.telling.above(0.5))
        return not (self.accuracy.above(self.chance.value) or prefers or responds or self.accuracy.value > 0.99)

    @property
    def loss(self) -> AnswerMetric:
        """What rises when the behaviour is damaged."""
        return AnswerMetric.of(self.prompts, "decisions" if self.above else "loss", self.model.cfg.d_vocab_out)

    # Runs.

    @property
    def streams(self) -> list[str]:
        """The residual stream before each layer, and after the last."""
        last = self.model.cfg.n_layers
        return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(last)), f"blocks.{last - 1}.hook_resid_post"]

    @cached_property
    def cache(self) -> ActivationCache:
        """One run on all prompts, with what questions read."""
        wanted = {*attribution.sites(self.model), *self.streams, *norms_of(self.model.cfg).values()}
        wanted |= {f"blocks.{layer}.attn.hook_pattern" for layer in range(self.model.cfg.n_layers)}
        if token_roles.readable(self.model.cfg) and not self.large:
            wanted |= token_roles.sites(self.model)
        return self.run(self.prompts, sorted(wanted))

    @torch.no_grad()
    def run(self, prompts: Prompts, sites: Sequence[str]) -> ActivationCache:
        """A run that keeps some sites and computes no logits."""
        device = self.model.W_U.device
        tokens, mask = prompts.tokens.to(device), prompts.mask.long().to(device)
        _, store = Transformer.run_with_cache(self.model, tokens, names_filter=list(sites), attention_mask=mask, return_type=None)
        return ActivationCache(dict(store), self.model)

    @cached_property
    def corrupted(self) -> Prompts:
        """The counterparts."""
        assert self.prompts.corrupted is not None
        return self.prompts.corrupted

    @property
    def heads(self) -> list[str]:
        return head_names(self.model.cfg)

    @cached_property
    def content(self) -> list[int]:
        """Tokens that prompts vary in: as the behaviour says, else as is seen."""
        return list(self.behaviour.content) if self.behaviour.content is not None else super().content

    @cached_property
    def roles(self) -> TokenRoles | None:
        """Roles of heads by token, where the network is so small and of such a shape that they can be read."""
        fits = token_roles.readable(self.model.cfg) and self.single and len(self.content) <= SHOWN
        same_length = bool(self.prompts.mask.all())
        return TokenRoles(self.cache, self.prompts.tokens, self.content, self.words) if fits and same_length else None

    @property
    def on(self) -> str:
        """What was run."""
        return f"{len(self.prompts):,} prompts, {len(self.places[0]):,} answers"
