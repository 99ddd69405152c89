"""Weights alone, of small networks: which heads copy, which mark repeated tokens, which answer for which token."""

from __future__ import annotations

from cutaway.analysis import head_composition, token_heads
from cutaway.analysis.scales import norm_scales
from cutaway.errors import CutawayError
from cutaway.model.frozen_norms import norms_of
from cutaway.report.findings import Finding, Value, none
from cutaway.report.questions.embeddings import content
from cutaway.report.study import Study

HEADING = "What the weights say"
LAYERS = 4


def lacks(study: Study) -> str:
    """Few layers."""
    layers = study.model.cfg.n_layers
    return "" if layers <= LAYERS else f"{layers} layers: weights are not read"


def passes(study: Study) -> float:
    """Only weights."""
    return 1.0


def ask(study: Study) -> list[Finding]:
    """Copying scores; in networks of two attention-only layers, detectors of repeated tokens and responsible heads."""
    found = []
    cfg = study.model.cfg
    if cfg.d_vocab == cfg.d_vocab_out:
        copies = head_composition.copying(study.model, seed=study.seed)
        values = {name: Value(float(one)) for name, one in zip(study.heads, copies.values.data, strict=True)}
        random = Value(copies.baseline, copies.baseline - 2 * copies.spread, copies.baseline + 2 * copies.spread)
        what = "the copying score of a head (how far it raises the logit of what it attends to)"
        found.append(Finding("largest", what, values, "", random, "random heads", "weights", two_sided=True))
    if cfg.n_layers == 2 and cfg.attn_only and cfg.positional_embedding_type == "standard" and cfg.d_vocab <= 1000:
        try:
            found += _tokens(study)
        except CutawayError as error:
            found.append(none("detectors of repeated tokens", str(error)))
    return found or [none("copying", "the network reads one vocabulary and answers in another")]


def _tokens(study: Study) -> list[Finding]:
    """Detectors and responsible heads, by token."""
    tokens = content(study)
    scales = norm_scales(study.cache) if norms_of(study.model.cfg) else None
    options = {"scales": scales, "tokens": tokens, "vocab": [study.word(one) for one in range(study.model.cfg.d_vocab)]}
    detectors = token_heads.duplicate_detectors(study.model, **options)  # type: ignore[arg-type]
    found = []
    for kind, heads in (("the same token", detectors.duplicate), ("anything but the same token", detectors.anti_duplicate)):
        for head, words in heads.items():
            named, what = dict.fromkeys(words, Value(1.0)), f"tokens from which {head} attends to {kind}, by its weights"
            found.append(Finding("count", what, named, total=len(tokens), on="weights"))
    if study.model.cfg.d_vocab == study.model.cfg.d_vocab_out:
        heads = token_heads.responsible_heads(study.model, **options).tokens_of  # type: ignore[arg-type]
        for head, words in heads.items():
            named = dict.fromkeys(words, Value(1.0))
            found.append(Finding("count", f"tokens whose own logit {head} moves most", named, total=len(tokens), on="weights"))
    return found
