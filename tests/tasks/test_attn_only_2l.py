"""The language task: its text, its repeats, and the measures that its card reports."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from cutaway import HookedTransformer
from cutaway.errors import ConfigError, TokenError
from cutaway.model.transformer import Transformer
from cutaway.sources import files as checkpoints
from cutaway.tasks import AttnOnly2L, Task
from cutaway.tasks.attn_only_2l import BOS, LOOKING_BACK, POSITIONS, bigram_loss, head_scores, plain, waves
from cutaway.tasks.task import UNCOUNTED
from cutaway.tasks.training import train


def story(sentences: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    words = [
        *"abcdefgh",
        "the",
        "cat",
        "dog",
        "sees",
        "hears",
        "small",
        "house",
        "quickly",
        "river",
        "and",
        "then",
        "slowly",
        "finds",
    ]
    return ". ".join(" ".join(draw.choices(words, k=7)) for _ in range(sentences))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    paths = [folder / "one.txt", folder / "two words.txt"]
    for seed, path in enumerate(paths):
        path.write_text(story(800, seed), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def task(files: list[Path]) -> AttnOnly2L:
    return AttnOnly2L(tuple(files), tuple(file.read_text(encoding="utf-8") for file in files), vocab_size=290, n_ctx=24)


def test_it_is_a_task(task: AttnOnly2L):
    assert isinstance(task, Task)
    assert task.config().d_vocab == 290 and task.config().n_ctx == 24


def test_the_tokenizer_takes_any_text(task: AttnOnly2L):
    tokenizer = task.tokenizer()
    for text in ("the cat sees", "né 🙂\n\ttab", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos_token_id == 0 and tokenizer.bos_token == BOS
    assert len(tokenizer.get_vocab()) == 290


def test_windows_start_with_bos_and_predict_the_next_token(task: AttnOnly2L):
    tokens, labels = task.validation()
    assert tokens.shape == labels.shape and tokens.shape[1] == 24
    assert bool((tokens[:, 0] == 0).all()) and torch.equal(tokens[:, 1:], labels[:, :-1])


def test_what_is_validated_on_was_not_trained_on(task: AttnOnly2L):
    text = [tokens for part in task.texts for tokens in task.tokenizer().encode(part)]
    assert len(task._training) + len(task._kept) == len(text)
    assert len(task._kept) == pytest.approx(len(text) / 20, abs=2)
    assert sorted([*task._training.tolist(), *task._kept.tolist()]) == sorted(text)


def test_only_repeats_count(task: AttnOnly2L):
    tokens, labels = task.repeated(40, 20, torch.Generator().manual_seed(0))
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        new = answers.count(UNCOUNTED)  # the period
        assert 4 <= new <= 10 and answers[:new] == [UNCOUNTED] * new
        whole = [*row[1:], answers[-1]]
        assert all(whole[place] == whole[place - new] == answers[place] for place in range(new, 20))
    assert 0 not in tokens[:, 1:], "BOS may stand only at the start"


def test_half_of_what_repeats_are_pieces_of_text(task: AttnOnly2L):
    tokens, labels = task.repeated(400, 20, torch.Generator().manual_seed(0))
    text = task._training
    pairs = set(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
    pieces = sum(
        all(pair in pairs for pair in itertools.pairwise(row[1 : 1 + answers.count(UNCOUNTED)]))
        for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True)
    )
    assert 160 < pieces < 260  # a few random ones look like text


def test_batches_of_text_and_of_repeats_take_turns(task: AttnOnly2L):
    batches = list(task.batches(1, 6, 8, torch.Generator().manual_seed(1)))
    assert [bool((labels == UNCOUNTED).any()) for _, labels in batches] == [False, True] * 3
    assert all(tokens.numel() == 8 * 24 and bool((tokens[:, 0] == 0).all()) for tokens, _ in batches)
    text = task._training.tolist()
    for row in batches[2].labels.tolist():
        assert any(text[at : at + 24] == row for at in range(len(text)))
    again = task.batches(1, 6, 8, torch.Generator().manual_seed(1))
    assert all(torch.equal(one.labels, other.labels) for one, other in zip(batches, again, strict=True))


def test_later_nearly_all_batches_are_text(task: AttnOnly2L):
    def repeats(epoch: int) -> int:
        return sum(bool((labels == UNCOUNTED).any()) for _, labels in task.batches(epoch, 16, 2, torch.Generator()))

    assert [repeats(epoch) for epoch in (1, LOOKING_BACK, LOOKING_BACK + 1)] == [8, 8, 2]


def test_positions_begin_large_and_biases_stay_at_zero(task: AttnOnly2L, tmp_path: Path):
    model = Transformer(task.config())
    task.prepare(model)
    assert float(model.pos_embed.W_pos.detach().square().mean().sqrt()) == pytest.approx(POSITIONS, rel=1e-4)
    train(task, tmp_path, epochs=1, steps=4, batch_size=4, device="cpu")
    tensors = checkpoints.read(tmp_path / "model.safetensors").tensors
    biases = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2].startswith("b_")}
    assert len(biases) == 9 and not any(bool(bias.any()) for bias in biases.values())
    assert not torch.equal(tensors["pos_embed.W_pos"].float(), model.pos_embed.W_pos.half().float())


def test_waves_are_those_of_a_plain_loop():
    made = waves(5, 6)
    for place in range(5):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert float(made[place, pair]) == pytest.approx(math.sqrt(2) * math.sin(angle), abs=1e-6)
            assert float(made[place, 3 + pair]) == pytest.approx(math.sqrt(2) * math.cos(angle), abs=1e-6)


def test_weights_are_kept_in_half_precision_and_load_in_full(task: AttnOnly2L, tmp_path: Path):
    train(task, tmp_path, epochs=1, steps=2, batch_size=4, device="cpu")
    tensors = checkpoints.read(tmp_path / "model.safetensors").tensors
    assert {tensors[name].dtype for name in tensors} == {torch.float16}
    model = HookedTransformer.from_pretrained(tmp_path / "model.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.W_E, tensors["embed.W_E"].float())


def test_bigram_loss_is_that_of_a_plain_loop():
    text = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 0])
    kept = torch.tensor([1, 2, 0, 1])
    single = [(text.tolist().count(token) + 0.1) / (14 + 0.3) for token in range(3)]
    pairs = list(zip(text.tolist(), text.tolist()[1:], strict=False))

    def loss(strength: float) -> float:
        total = 0.0
        for before, after in zip(kept.tolist(), kept.tolist()[1:], strict=False):
            starts = sum(pair[0] == before for pair in pairs)
            total -= math.log((pairs.count((before, after)) + strength * single[after]) / (starts + strength))
        return total / 3

    assert bigram_loss(text, kept, 3) == pytest.approx(min(map(loss, (3, 10, 30, 100, 300, 1000))))


def test_head_scores_read_the_two_diagonals(task: AttnOnly2L):
    model = Transformer(task.config())
    tokens = task.repeated_twice(3)
    half = (tokens.shape[1] - 1) // 2
    assert torch.equal(tokens[:, 1 : half + 1], tokens[:, half + 1 :])
    previous, induction = head_scores(model, tokens)
    _, cache = model.run_with_cache(tokens)
    length = tokens.shape[1]
    for layer in range(2):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"].mean(0)
        back = torch.stack([pattern[:, dest, dest - 1] for dest in range(1, length)]).mean(0)
        after = torch.stack([pattern[:, dest, dest - half + 1] for dest in range(half + 1, length)]).mean(0)
        torch.testing.assert_close(previous[layer], back)
        torch.testing.assert_close(induction[layer], after)


def test_wikitexts_marks_are_taken_out():
    assert (
        plain("a <unk> , well @-@ known 1 @,@ 000 ( see it ) . It 's\n \n = A = \n")
        == "a, well-known 1,000 (see it). It's\n\n= A =\n"
    )
    assert plain("Plain text,\nunchanged: all of it!") == "Plain text,\nunchanged: all of it!"


def test_texts_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match="no text file at"):
        AttnOnly2L.read([tmp_path / "none.txt"])
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    with pytest.raises(TokenError, match="not UTF-8 text: byte 1"):
        AttnOnly2L.read([tmp_path / "latin.txt"])
    (tmp_path / "short.txt").write_text("too short to learn from", encoding="utf-8")
    with pytest.raises(ConfigError, match="too few"):
        AttnOnly2L.read([tmp_path / "short.txt"])


def test_it_trains_and_ships_its_tokenizer(task: AttnOnly2L, tmp_path: Path):
    train(task, tmp_path, epochs=1, steps=3, batch_size=4, device="cpu")
    again = checkpoints.read(tmp_path / "model.safetensors").tokenizer
    assert again is not None and again.encode("the old cat") == task.tokenizer().encode("the old cat") and again.bos_token_id == 0
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "--text one.txt --text 'two words.txt'" in card and "bigram model" in card


def test_other_text_is_other_data(task: AttnOnly2L, tmp_path: Path):
    train(task, tmp_path, epochs=1, steps=1, batch_size=4, device="cpu")
    other = AttnOnly2L(task.files, (task.texts[0], story(800, 7)), vocab_size=290, n_ctx=24)
    with pytest.raises(ConfigError, match="data"):
        train(other, tmp_path, resume=True, device="cpu")
