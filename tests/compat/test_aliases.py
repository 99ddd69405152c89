"""Aliases: the same objects, in and out again, and a sentence for every name that is not there."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import cutaway
from cutaway import compat
from cutaway.compat.aliases import Alias, NoSuchAlias
from cutaway.compat.names import ELSEWHERE, MODULES, ROOTS


@pytest.fixture(autouse=True)
def aliases() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


def imported(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize("module", [name for name in MODULES if name != "transformer_lens.patching"])
def test_every_name_of_the_table_is_there(module: str) -> None:
    found = importlib.import_module(module)
    assert isinstance(found, Alias) and dir(found)
    for name in dir(found):
        assert hasattr(found, name), name


CLASSES = ("HookedTransformer", "HookedTransformerConfig", "ActivationCache", "FactoredMatrix")


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_cutaways_own_however_they_are_imported(name: str) -> None:
    own = getattr(cutaway, name)
    code = f"import transformer_lens\nfrom transformer_lens.{name} import {name} as a\nfrom transformer_lens import {name} as b"
    first = imported(code)
    assert first["a"] is first["b"] is getattr(first["transformer_lens"], name) is own
    again = imported(f"import transformer_lens.{name}\nc = transformer_lens.{name}")
    assert again["c"] is own, "importing the module of a class must not hide the class"


def test_parts_are_the_networks_own() -> None:
    from cutaway.model import attention, hook_points

    names = imported(
        "from transformer_lens.components.attention import Attention\nfrom transformer_lens.components import Attention as same\n"
        "from transformer_lens.hook_points import HookPoint\nfrom transformer_lens.utilities.tensors import get_corner"
    )
    assert names["Attention"] is names["same"] is attention.Attention and names["HookPoint"] is hook_points.HookPoint


def test_star_imports_take_what_is_there() -> None:
    names = imported("from transformer_lens.utils import *\nfrom circuitsvis.attention import *")
    assert callable(names["get_act_name"]) and callable(names["from_cache"]) and "_x" not in names


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (
            "from transformer_lens import HookdTransformer",
            ["'HookdTransformer'", "did you mean 'HookedTransformer'", "open an issue"],
        ),
        ("from transformer_lens import HookedEncoder", ["loads no encoders", "uninstall"]),
        ("import transformer_lens.no.where", ["transformer_lens, and has no 'no'"]),
        ("from transformer_lens.utils import get_act_nme", ["'get_act_name'", "lm_accuracy"]),
        ("from circuitsvis import attentio", ["'attention'", "topk_samples"]),
        ("import circuitsvis.attention.heads", ["circuitsvis.attention, and has no 'heads'"]),
    ],
)
def test_an_unknown_import_says_what_there_is(code: str, parts: list[str]) -> None:
    with pytest.raises(NoSuchAlias) as caught:
        exec(code)
    assert isinstance(caught.value, ImportError) and all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_unknown_attribute_says_what_there_is() -> None:
    utils = importlib.import_module("transformer_lens.utils")
    with pytest.raises(AttributeError, match=r"has no 'get_act_nam' in it \(did you mean 'get_act_name'"):
        _ = utils.get_act_nam
    assert not hasattr(utils, "__wrapped__") and getattr(utils, "nothing", 3) == 3


def test_reasons_are_for_names_that_are_not_there() -> None:
    there = {name for names in MODULES.values() for name in names}
    assert not there & set(ELSEWHERE)


def test_uninstalling_takes_everything_away() -> None:
    importlib.import_module("transformer_lens.utils")
    compat.install()  # twice is once
    compat.uninstall()
    assert not compat.installed() and not [name for name in sys.modules if name.partition(".")[0] in ROOTS]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("transformer_lens")
    compat.uninstall()


def test_an_original_that_was_imported_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.uninstall()
    original, part = ModuleType("transformer_lens"), ModuleType("transformer_lens.utils")
    monkeypatch.setitem(sys.modules, "transformer_lens", original)
    monkeypatch.setitem(sys.modules, "transformer_lens.utils", part)
    compat.install()
    assert importlib.import_module("transformer_lens") is not original
    compat.uninstall()
    assert importlib.import_module("transformer_lens") is original and sys.modules["transformer_lens.utils"] is part


def test_objects_pickled_under_the_foreign_name_can_be_read() -> None:
    reference = b"ctransformer_lens.FactoredMatrix\nFactoredMatrix\n."
    assert pickle.loads(reference) is cutaway.FactoredMatrix


def test_nothing_happens_at_plain_import() -> None:
    code = "import cutaway, sys\nimport cutaway.compat\nsys.exit(cutaway.compat.installed() or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Shell:
    def __init__(self) -> None:
        self.input_transformers_cleanup: list[Any] = []


def test_the_extension_of_ipython() -> None:
    compat.uninstall()
    shell = Shell()
    compat.load_ipython_extension(shell)
    compat.load_ipython_extension(shell)
    assert compat.installed() and len(shell.input_transformers_cleanup) == 1
    compat.unload_ipython_extension(shell)
    assert not compat.installed() and shell.input_transformers_cleanup == []
