"""Plain numbers of a model's answers, as trees by position, class, token and head.

Tables by token are for small vocabularies (`ModelAnswers.by_token`), tables by answer for single right ones (`.single`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.analysis import attribution
from cutaway.analysis.ablation import ablate_heads
from cutaway.analysis.answers import ModelAnswers
from cutaway.analysis.class_attribution import by_class
from cutaway.analysis.hill_climbing import HillClimb
from cutaway.analysis.shared import head_names
from cutaway.analysis.token_roles import Classes, Masks, TokenRoles
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import mean_of

MOST_HEADS = 16  # of a network whose heads are ablated in every way
ROOM = 10**8  # numbers of an attribution to all tokens


def performance(of: ModelAnswers, classes: Mapping[str, Bool[Tensor, "answer"]]) -> dict[str, Any]:
    """Loss, accuracy and the right answers' probability: over all, by position, by class."""
    (rows, at), loss, right = of.places, of.losses, of.correct.float()
    probability = (-loss).exp()
    wrong = torch.zeros(len(of.prompts)).index_add(0, rows, 1 - right)
    series = {"loss": loss, "accuracy": right, "mean_correct_probability": probability}
    return {
        **{name: mean_of(each) for name, each in series.items()}, "min_correct_probability": float(probability.min()),
        "mistakes": int(wrong.sum()), "positions": len(right), "sequences_without_mistake": mean_of((wrong == 0).float()),
        "by_position": {name: [mean_of(each, at == one) for one in range(of.prompts.tokens.shape[1])]
                        for name, each in series.items()},
        "by_kind": {name: {"positions": int(where.sum()), **{what: mean_of(each, where) for what, each in series.items()}}
                    for name, where in classes.items()},
    }  # fmt: skip


def answer(of: ModelAnswers, number: int, kinds: Mapping[str, Bool[Tensor, "batch pos"]]) -> dict[str, Any]:
    """One answer: the prompt up to it, what is right, what is said, what kind of mistake that is."""
    row, at = (int(one[number]) for one in of.places)
    right, given = (of.answer_word(int(one[number].int().argmax() if one.dtype == torch.bool else one[number].argmax()))
                    for one in (of.right, of.logits))  # fmt: skip
    return {
        "tokens": of.joined(of.prompts.tokens[row, : at + 1].tolist()), "position": at, "answer": right, "given": given,
        "probability": float((-of.losses[number]).exp()),
        "kind": next((name for name, where in kinds.items() if bool(where[row, at])), ""),
    }  # fmt: skip


def hard_inputs(
    found: HillClimb, of: ModelAnswers, failed: Bool[Tensor, "chain pos"], hardest: Sequence[int], kinds: Classes
) -> dict[str, Any]:
    """What a search for hard inputs came to: how many chains ended in a mistake, which inputs, and what those have in common.

    Args:
        of: the answers to the inputs that chains ended with; `hardest` is the number of the worst one of each.
        failed: where that answer is wrong.
    """
    order = found.final.argsort(descending=True).tolist()
    return {
        "chains": len(found.tokens), "wrong_at_end": int(failed.any(1).sum()), "looked_at": found.looked_at,
        "highest_loss": float(found.final.max()), "median_changes": float(found.changes.float().median()),
        "sequences": [{**answer(of, hardest[row], kinds), "changed": int(found.changes[row])} for row in order],
        "in_common": {
            "kinds": {name: mean_of(where[failed].float()) if bool(failed.any()) else 0.0 for name, where in kinds.items()},
            "answers": dict(Counter(of.answer_word(token) for token in of.prompts.labels[failed].tolist())),
        },
    }  # fmt: skip


def examples(of: ModelAnswers, count: int) -> dict[str, Any]:
    """Some prompts with what is right and what is said; logits at the last position by how often a token has occurred."""
    prompts, texts = of.prompts, []
    for row in range(min(count, len(prompts))):
        there = of.places[0] == row
        right, given = (of.answers_text(one[there].argmax(1).tolist()) for one in (of.right.int(), of.logits))
        texts.append({"tokens": of.text(row), "answers": right, "given": given})
    last = of.places[1] == prompts.lengths[of.places[0]] - 1
    if of.model.cfg.d_vocab != of.model.cfg.d_vocab_out or not bool(last.any()):
        return {"examples": texts}
    rows, content = of.places[0][last], of.content
    times, logits = of.occurrences[rows, prompts.lengths[rows] - 1][:, content], of.logits[last][:, content]
    kinds = {"repeated": times > 1, "once": times == 1, "absent": times == 0}
    return {"examples": texts, "last_logits": {name: mean_of(logits, where) for name, where in kinds.items()}}


def attention(
    of: ModelAnswers, attended: Float[Tensor, "head batch pos"], counted: Bool[Tensor, "batch pos"]
) -> dict[str, dict[str, float]]:
    """Head → token that looks → its attention to a source."""
    masks = {of.words[token]: counted & (of.prompts.tokens == token) for token in of.content}
    known = {word: mask for word, mask in masks.items() if bool(mask.any())}
    return {head: {word: mean_of(each, mask) for word, mask in known.items()}
            for head, each in zip(head_names(of.model.cfg), attended, strict=True)}  # fmt: skip


def ablations(of: ModelAnswers, seed: int) -> dict[str, Any]:
    """The rise of the loss without a head's output, queries, keys or values, or a layer's: by zero and by mean, by position.

    Of small networks whose prompts have one length and one right token for each answer.
    """
    cfg, prompts, heads = of.model.cfg, of.prompts, head_names(of.model.cfg)
    if not of.single or len(heads) > MOST_HEADS or not bool(prompts.mask.all()):
        return {}
    found = ablate_heads(of.model, prompts.tokens, prompts.labels, audit=1, seed=seed)
    tree: dict[str, Any] = {"heads": {}, "heads_by_position": {}, "layers": {}, "layers_by_position": {}, "qkv": {}}
    for how in found.values.names("kind"):
        single = found.values.sel(kind=how, site="z").mean("batch")
        whole = found.layers.sel(kind=how, site="z").mean("batch")
        tree["heads"][how], tree["layers"][how] = found.increases(how), found.layer_increases(how)
        tree["heads_by_position"][how] = {head: single.sel(head=head).data for head in heads}
        tree["layers_by_position"][how] = {str(layer): whole.sel(layer=layer).data for layer in range(cfg.n_layers)}
        tree["qkv"][how] = {which: found.increases(how, which) for which in "qkv"}
    return {"ablations": tree}


def attributions(
    of: ModelAnswers, cache: ActivationCache, classes: Classes, sources: Masks, roles: TokenRoles | None
) -> dict[str, Any]:
    """What components add to the right answer's logit: by position and by answer; where vocabularies are one, by class, too.

    Args:
        sources: of the first examples (`token_roles.FEW`).
    """
    prompts, cfg, last = of.prompts, of.model.cfg, head_names(of.model.cfg, [of.model.cfg.n_layers - 1])
    right = attribution.attribute(cache, targets=prompts.labels)
    mean, by_position = right.over().values.as_dict(), right.by_position().values
    tree: dict[str, Any] = {
        "overall": mean, "left_over": float(right.remainder.data.nan_to_num(0).abs().max()),
        "by_position": {name: by_position.sel(component=name).data for name in mean},
        "by_correct": right.by_target(of.answer_words).values.as_dict(),
    }  # fmt: skip
    if cfg.d_vocab != cfg.d_vocab_out:
        return {"attribution": tree}
    tokens = prompts.tokens.masked_fill(~prompts.mask, -1)
    repeated = of.occurrences.gather(-1, prompts.tokens[..., None])[..., 0] > 1
    own = attribution.attribute(cache, targets=tokens).by_class(tokens, of.words, where=repeated, axis="token").values
    content = [of.words[token] for token in of.content]
    tree["by_duplicate"] = own.sel(token=content).as_dict()
    lowest = own.sel(component=last, token=content).data.nan_to_num(torch.inf)
    lowering: dict[str, list[str]] = {head: [] for head in last}
    for word, values in zip(content, lowest.T, strict=True):
        if float(values.min()) < 0:
            lowering[last[int(values.argmin())]].append(word)
    classes = {name: where for name, where in classes.items() if bool(where.any())}
    of_class = {} if len(mean) * prompts.labels.numel() * cfg.d_vocab >= ROOM else by_class(
        right, cache, prompts.labels, of.occurrences, classes, sources, of.content, of.words, roles
    )  # fmt: skip
    others = {of.words[token]: _of_answer(of, cache, token)
              for token in of.right.any(0).nonzero().flatten().tolist() if token not in of.content}  # fmt: skip
    return {"attribution": tree, "responsible_by_attribution": lowering, "by_class": of_class, "by_other_answer": others}


def _of_answer(of: ModelAnswers, cache: ActivationCache, token: int) -> dict[str, Any]:
    """An answer that is no content ("none"): what components add to its logit where it is right and elsewhere; its lead."""
    rows, at = of.places
    there, varied = of.right[:, token], of.varied[rows, at]
    added = attribution.attribute(cache, targets=torch.full_like(of.prompts.tokens, token)).values
    grids = {"attribution": there & varied, "attribution_elsewhere": ~there & varied}
    trees = {name: {component: mean_of(added.sel(component=component).data[rows, at], where)
                    for component in added.names("component")} for name, where in grids.items()}  # fmt: skip
    lead = of.logits[:, token] - of.logits[:, of.content].amax(1)
    return {**trees, "accuracy": mean_of(of.correct.float(), there & varied), "margin": mean_of(lead, there & varied)}
