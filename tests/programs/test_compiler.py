"""Compiled programs give what interpreted ones give, on every input, with norms and without, in as few layers as it takes."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from cutaway import HookedTransformer, programs
from cutaway.errors import ProgramError
from cutaway.programs import Attend, Bucket, Map, Multiply, Program, Weigh
from cutaway.programs.compiler import compile_program
from cutaway.programs.language import among, hard, latest, offset, same, says
from tests.programs.inputs import inputs

ABC = ("a", "b", "c")
PRECISION = {None: 1e-5, "LN": 1e-3, "RMS": 1e-3}  # beside norms the stream holds a constant of 500, and float32 rounds


def agree(program: Program, norm: str | None, upto: int, at_most: int | None, long: int) -> None:
    """The same logits, and the same answers, on inputs of each length."""
    model = compile_program(program, norm=norm).model
    by_length = defaultdict(list)
    for tokens in inputs(program, upto=upto, at_most=at_most, long=long):
        by_length[len(tokens)].append(tokens)
    for batch in by_length.values():
        with torch.no_grad():
            logits = model(torch.tensor(batch))
        runs = [programs.run(program, tokens) for tokens in batch]
        torch.testing.assert_close(logits, torch.tensor([run.logits for run in runs]), atol=PRECISION[norm], rtol=0)
        for run, row in zip(runs, logits.tolist(), strict=True):
            for q, answer in run.answers.items():
                above = [token for token, x in enumerate(row[q]) if x > 0]
                assert answer == (above if program.read_out.kind == "above" else row[q].index(max(row[q])))


@pytest.mark.parametrize("norm", PRECISION)
@pytest.mark.parametrize("name", programs.names())
def test_shipped_programs_compile(name: str, norm: str | None) -> None:
    agree(programs.find(name), norm, upto=4, at_most=10, long=1)


@pytest.mark.parametrize("norm", [None, "LN"])
def test_random_programs_compile(norm: str | None) -> None:
    for seed in range(25):
        agree(programs.draw(seed), norm, upto=4, at_most=4, long=1)


SMALLER = {
    "sorted_text": {"size": 2},
    "maximum": {"size": 4},
    "modular_sum": {"size": 4},
}  # of large vocabularies there are too many inputs


@pytest.mark.fuzz
@pytest.mark.parametrize("norm", PRECISION)
@pytest.mark.parametrize("name", programs.names())
def test_shipped_programs_compile_on_all_short_inputs(name: str, norm: str | None) -> None:
    agree(programs.find(name), norm, upto=6, at_most=None, long=100)
    if name in SMALLER:
        agree(programs.find(name, **SMALLER[name]), norm, upto=6, at_most=None, long=100)


@pytest.mark.fuzz
@pytest.mark.parametrize("norm", [None, "LN"])
@pytest.mark.parametrize("seed", range(200))
def test_random_programs_compile_on_all_short_inputs(seed: int, norm: str | None) -> None:
    agree(programs.draw(seed), norm, upto=6, at_most=None, long=50)


def test_a_compiled_program_is_an_ordinary_network() -> None:
    model = compile_program(programs.find("induction"), HookedTransformer, norm="LN").model
    logits, cache = model.run_with_cache(torch.tensor([[0, 1, 2, 0]]))
    assert int(logits[0, -1].argmax()) == 1
    torch.testing.assert_close(cache["pattern", 0][0, 0, 3], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(cache["pattern", 1][0, 0, 3], torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_edges_are_what_the_program_reads() -> None:
    compiled = compile_program(programs.find("induction"))
    assert compiled.places == {"before": "0.0", "followed": "1.0"}
    previous = {("pos_embed", "0.0.q"), ("pos_embed", "0.0.k"), ("embed", "0.0.v")}
    looking = {
        ("embed", "1.0.q"),
        ("pos_embed", "1.0.k"),
        ("0.0", "1.0.k"),
        ("embed", "1.0.v"),
    }  # the latest, so keys read positions
    assert compiled.edges == previous | looking | {("1.0", "logits")}


LAYERS = {
    "shift_cipher": 1, "previous_token": 1, "histogram": 1, "majority": 1, "modular_sum": 1, "two_pointers": 1, "mostly_a": 1,
    "induction": 2, "reverse": 2, "first_unique": 2, "palindrome": 2, "dyck_depth": 2, "sort": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_few(name: str) -> None:
    model = compile_program(programs.find(name)).model
    assert model.cfg.n_layers == LAYERS[name]
    assert model.cfg.attn_only == (name in ("shift_cipher", "previous_token", "majority", "induction"))


def test_maps_of_maps_share_an_mlp() -> None:
    lines = (
        Attend("before", hard(offset(1))),
        Map("alike", ("tokens", "before"), tuple(int(a == b) for a in range(3) for b in range(3)), 2),
        Map("alike_and_a", ("alike", "tokens"), (0, 0, 0, 1, 0, 0), 2),
        Map("either", ("alike_and_a", "before"), (0, 0, 1, 1, 1, 1), 2),
    )
    program = Program("chain", ABC, 8, lines, says("either", 2), ("no", "yes"))
    assert compile_program(program).model.cfg.n_layers == 1
    agree(program, None, upto=5, at_most=None, long=5)


def test_what_nothing_reads_takes_no_room() -> None:
    lines = (Attend("unused", hard(offset(2))), Attend("used", hard(offset(1))))
    compiled = compile_program(Program("two", ABC, 5, lines, says("used", 3)))
    assert compiled.model.cfg.n_heads == 1
    assert set(compiled.places) == {"used"}


def test_programs_that_cannot_be_compiled_say_which_line_and_why() -> None:
    counted = Program("n", ABC, 5, (Attend("often", hard(same("tokens")), how="count"),), says("often", 5), tuple("01234"))
    with pytest.raises(ProgramError, match=r"^line 1 \(often\) counts keys by 'tokens'.*begins with \(bos\)"):
        compile_program(counted)
    square = (
        Attend("shares", hard(), how="mean", table=((1.0,), (0.0,), (0.0,))),
        Multiply("squared", "shares", "shares"),
        Bucket("much", "squared", (0.3,), 0.01),
    )
    with pytest.raises(ProgramError, match=r"^line 2 \(squared\) multiplies two numbers"):
        compile_program(Program("n", ABC, 5, square, says("much", 2), ("no", "yes")))
    wide = Map("pair", ("positions", "x1", "x2"), (0,) * 40**3, 1)
    copies = (Attend("x1", hard(offset(1)), "positions"), Attend("x2", hard(offset(2)), "positions"))
    with pytest.raises(ProgramError, match=r"^line 3 \(pair\) needs 64000 neurons"):
        compile_program(Program("n", ABC, 40, (*copies, wide), says("pair", 1), ("a",)))
    with pytest.raises(ProgramError, match="norm='BN'"):
        compile_program(programs.find("induction"), norm="BN")


def test_counting_needs_no_first_token_where_the_first_position_is_known() -> None:
    late = Map("late", ("positions",), (0, 0, 0, 1, 1, 1), 2)
    lines = (late, Attend("many", hard(among("late", [1])), how="count"))
    program = Program("late", ABC, 6, lines, says("many", 6), tuple("012345"))
    agree(program, None, upto=6, at_most=200, long=0)


def test_sums_of_numbers_and_copies_of_them_compile() -> None:
    lines = (
        Attend("share", hard(), how="mean", table=((1.0,), (0.0,), (0.0,))),
        Weigh("total", (("share", ((2.0,),)), ("tokens", ((0.0,), (1.0,), (-1.0,)))), (0.25,)),
        Attend("earlier", hard(offset(1)), "total"),
        Attend("last_b", hard(among("tokens", [1]), latest()), "total"),
        Weigh("both", (("earlier", ((1.0,),)), ("last_b", ((-1.0,),))), (0.1,)),
        Bucket("sign", "both", (0.02,), 0.001),
    )
    program = Program("numbers", ABC, 7, lines, says("sign", 2), ("down", "up"))
    agree(program, None, upto=4, at_most=100, long=5)
    agree(program, "LN", upto=4, at_most=100, long=5)
