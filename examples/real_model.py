"""A page about a real language model: what it predicts in the indirect-object example, which parts say so, and where.

    python examples/real_model.py [--model smollm2-135m-instruct] [--out out/smollm2/report.html]     # the end of make demo

Where the model cannot be had, it says so in a sentence and ends well, since a page about the toy is there already.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cutaway import HookedTransformer, attribute, errors, metrics, patch, predict, view

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
RIGHT, WRONG = " Mary", " John"
SHOWN = 5


def page(model: HookedTransformer) -> view.Page:
    """Prediction, attribution and patching of the example, each with what it found in a sentence."""
    where = f"{model.cfg.model_name}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads, {model.cfg.d_vocab} tokens"
    intro = [
        f"Two prompts differ in one name. After “{CLEAN}” the model should say{RIGHT}, who was named once; after “{CORRUPTED}” "
        f"it should say{WRONG}. How does it know?"
    ]
    sections = [prediction(model), attribution(model), patching(model)]
    return view.page("The indirect object in a real language model", sections, intro=intro, subtitle=where)


def prediction(model: HookedTransformer) -> view.Section:
    """What the model says next, and how well it predicted the prompt."""
    probabilities = model(CLEAN)[0, -1].softmax(-1)
    best = probabilities.topk(SHOWN)
    words = [model.to_string(token).strip() for token in best.indices]
    likeliest = [f"“{word}” ({share:.2f})" for word, share in zip(words, best.values, strict=True)]
    said = f"The next token is {likeliest[0]}; then come {', '.join(likeliest[1:])}."
    return view.Section("What it predicts", [predict(model, CLEAN).figure()], summary=said)


def attribution(model: HookedTransformer) -> view.Section:
    """Which heads and MLPs raise the right name above the wrong one, read off the last position."""
    tokens = model.to_tokens(CLEAN)
    right, wrong = (torch.full_like(tokens, -1) for _ in range(2))  # (a target at the last position alone)
    right[0, -1], wrong[0, -1] = model.to_single_token(RIGHT), model.to_single_token(WRONG)
    found = attribute(model, tokens, targets=right, minus=wrong)
    last = found.values.data[:, 0, -1]
    order = last.argsort(descending=True)[:SHOWN].tolist()
    labels = found.values.names("component")
    parts = ", ".join(f"{labels[at]} {last[at]:+.2f}" for at in order)
    said = f"The logit of{RIGHT} is {found.logit.data[0, -1]:.2f} above that of{WRONG}. Most of it comes from {parts}."
    about = (
        "Each head and MLP adds a vector to the residual stream; its part of the logit difference is that vector times the "
        "direction that separates the two names, with the final norm held at what it was."
    )
    return view.Section("Which parts say so", [about, found.figure()], summary=said)


def patching(model: HookedTransformer) -> view.Section:
    """Where the difference between the prompts travels: activations of the clean run put into the corrupted one."""
    right, wrong = model.to_single_token(RIGHT), model.to_single_token(WRONG)
    found = patch(model, CLEAN, CORRUPTED, metrics.logit_difference(right, wrong), kinds=["resid_pre", "z"])
    heads = found.normalised("z").data
    order = heads.flatten().argsort(descending=True)[:SHOWN].tolist()
    shares = ", ".join(f"{at // heads.shape[1]}.{at % heads.shape[1]} {heads.flatten()[at]:.2f}" for at in order)
    said = f"Heads whose output alone restores most of the answer (layer.head, share of the difference): {shares}."
    about = (
        "1 means that this one activation, taken from the clean run, restores the clean answer; 0 means that it changes "
        "nothing. In the residual stream the answer first stands at the repeated name and later at the last token; where it "
        "moves, heads moved it."
    )
    audit = f"{found.audit}"
    return view.Section("Where it travels", [about, found.figure("resid_pre"), found.figure("z"), audit], summary=said)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("out/smollm2/report.html"))
    given = parser.parse_args()
    try:
        model = HookedTransformer.from_pretrained(given.model, center_writing_weights=False)
    except errors.CutawayError as error:
        print(f"no page about a real model: {error}")
        return
    with torch.no_grad():
        given.out.parent.mkdir(parents=True, exist_ok=True)
        print(page(model).save(given.out, replace=True))


if __name__ == "__main__":
    main()
