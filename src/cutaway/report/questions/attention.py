"""Who attends to which source: the behaviour's own sources from its answers, and the kinds that any text has."""

from __future__ import annotations

from dataclasses import replace

import torch

from cutaway.analysis import answer_numbers
from cutaway.analysis.heads import KINDS, kind_mask
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value, ratio, ratios
from cutaway.tasks.behaviour import Sources
from cutaway.view import attention_patterns

LEAST = 0.1  # attention beyond even attention that matters


def lacks(study: Study) -> str:
    """Attention needs heads."""
    return "" if study.model.cfg.n_layers else "the network has no layers"


def visible(study: Study) -> Sources:
    """Which keys each query sees."""
    real = study.prompts.mask
    seen = real[:, :, None] & real[:, None, :]
    return seen if study.model.cfg.attention_dir == "bidirectional" else seen.tril()


def sources(study: Study) -> dict[str, Sources]:
    """Name → where the source stands, for each query that counts."""
    seen = visible(study)
    found, answered = {}, study.prompts.answered[:, :, None]
    for name, mask in study.behaviour.sources(study.prompts).items():
        found[f"{name}, from the answer"] = mask & seen & answered
        if bool((mask & seen & ~answered).any()):
            found[name] = mask & seen
    tokens, length = study.prompts.tokens, study.prompts.tokens.shape[1]
    for kind, label in KINDS.items():
        mask = kind_mask(kind, tokens, length, study.prompts.mask)
        found[label] = mask.expand_as(seen) & seen
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def ask(study: Study) -> list[Finding]:
    """For each source the heads' share of attention, against even attention."""
    seen, found, claimed = visible(study), [], []
    for name, mask in sources(study).items():
        counted = mask.any(-1)
        even = ratio(((mask.sum(-1) / seen.sum(-1).clamp(min=1)) * counted).sum(1), counted.sum(1))
        if even.value > 0.9:  # whatever it does, a head attends there
            continue
        attended = torch.cat([torch.einsum("bhds,bds->hbd", study.cache["pattern", layer], mask.float())
                            for layer in range(study.model.cfg.n_layers)])  # fmt: skip
        values = ratios(study.heads, attended.sum(-1), counted.sum(1))
        what = f"attention to {name}"
        by_token = {"attention": {name: answer_numbers.attention(study, attended, counted)}} if study.by_token else {}
        numbers = {**by_token, "even_attention": even.value}
        one = Finding("largest", what, values, "share", even, "even attention", study.on, margin=LEAST, numbers=numbers)
        found.append(one if one.claims else replace(one, silent=True))
        claimed += [name] if one.claims else []
    what = "sources that some head attends to at least 10% of its attention more than evenly"
    found.insert(0, Finding("count", what, dict.fromkeys(claimed, Value(1.0)), total=len(found), on=study.on))
    if found and not study.large:
        found[0] = _with_patterns(study, found[0])
    return found


def _with_patterns(study: Study, finding: Finding) -> Finding:
    """With the patterns of the first prompt."""
    length = min(int(study.prompts.lengths[0]), 60)
    words = [study.word(token) for token in study.prompts.tokens[0, :length].tolist()]
    patterns = torch.cat([study.cache["pattern", l][0, :, :length, :length] for l in range(study.model.cfg.n_layers)])
    return replace(finding, figures=[attention_patterns(words, patterns, study.heads, title="Attention on the first prompt")])
