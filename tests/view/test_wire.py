"""The wire format: what Python writes, Python and TypeScript read alike."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cutaway.errors import NotReadable
from cutaway.view import wire
from tests.view.view_browser import UI

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_small_arrays_travel_exactly() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    header, arrays_ = wire.unpack(wire.pack({"view": "grid"}, {"values": values}))
    assert header == {"view": "grid"}
    np.testing.assert_array_equal(arrays_["values"], values)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=FLOATS))
def test_any_array_comes_back(values: np.ndarray) -> None:
    _, exact = wire.unpack(wire.pack({}, {"a": values}, dtype="f32"))
    np.testing.assert_array_equal(exact["a"], values)
    _, rounded = wire.unpack(wire.pack({}, {"a": values}, dtype="u8"))
    finite = values[np.isfinite(values)].astype(np.float64)
    step = max(finite.max() - finite.min(), np.abs(finite).max()) / 126 if finite.size else 0.0
    same = np.isfinite(values)
    np.testing.assert_array_equal(rounded["a"][~same], values[~same])
    assert np.all(np.abs(rounded["a"][same] - values[same].astype(np.float64)) <= step + 1e-6 * np.abs(values[same]))


def test_eight_bits_tell_small_attention_apart() -> None:
    values = np.array([[0.0, 0.001, 0.002, 0.004, 0.5, 1.0]], np.float32)
    rounded = wire.unpack(wire.pack({}, {"a": values}, dtype="u8"))[1]["a"]
    np.testing.assert_allclose(rounded, values, rtol=0.1)
    signed = wire.unpack(wire.pack({}, {"a": np.concatenate([values, -values])}, dtype="u8"))[1]["a"]
    np.testing.assert_array_equal(signed[0], -signed[1])
    np.testing.assert_allclose(signed[:1], values, rtol=0.2)


def test_a_triangle_takes_half_the_room() -> None:
    values = np.random.default_rng(0).random((4, 64, 64)).astype(np.float32)
    lower = np.tril(values)
    whole, half = (len(gzip.decompress(wire.pack({}, {"a": array}))) for array in (values, lower))
    assert half < 0.55 * whole
    np.testing.assert_array_equal(wire.unpack(wire.pack({}, {"a": lower}))[1]["a"], lower)


def test_one_value_above_the_diagonal_keeps_the_whole_matrix() -> None:
    values = np.tril(np.ones((2, 5, 5), np.float32))
    values[1, 0, 4] = 1e-20
    assert not wire.lower_triangular(values)
    np.testing.assert_array_equal(wire.unpack(wire.pack({}, {"a": values}))[1]["a"], values)


def test_nan_above_the_diagonal_keeps_the_whole_matrix() -> None:
    values = np.tril(np.ones((1, 3, 3), np.float32))
    values[0, 0, 1] = np.nan
    assert not wire.lower_triangular(values)


def test_values_beyond_half_precision_are_not_lost() -> None:
    values = np.full((200, 200), 1e6, np.float32)
    np.testing.assert_array_equal(wire.unpack(wire.pack({}, {"a": values}))[1]["a"], values)


def test_whole_numbers_are_never_rounded() -> None:
    values = np.arange(30_000, dtype=np.int32) + 16_777_217
    for dtype in (None, "u8"):
        np.testing.assert_array_equal(wire.unpack(wire.pack({}, {"a": values}, dtype=dtype))[1]["a"], values)


def test_strings_of_any_kind_survive() -> None:
    tokens = ["</script>", "\ud800", "\u2028", "שלום", "🙂", "\0", "x" * 2000]
    assert wire.unpack(wire.pack({"tokens": tokens}, {}))[0]["tokens"] == tokens


def test_other_bytes_are_refused() -> None:
    with pytest.raises(NotReadable, match="no figure"):
        wire.unpack(gzip.compress(b"hello, world"))
    newer = gzip.decompress(wire.pack({}, {})).replace(b'"v":1', b'"v":2')
    with pytest.raises(NotReadable, match="newer"):
        wire.unpack(gzip.compress(newer))


def example() -> tuple[bytes, dict[str, np.ndarray]]:
    """A figure with every kind of array, as `ui/tests/wire.json` holds it."""
    rng = np.random.default_rng(7)
    levels = rng.normal(size=(5, 6)).astype(np.float32)
    levels[0, 0], levels[1, 1], levels[2, 2] = np.nan, np.inf, -np.inf
    known = {
        "exact": rng.normal(size=(2, 3)).astype(np.float32),
        "triangle": np.tril(rng.random((2, 4, 4))).astype(np.float32),
        "half": (rng.normal(size=(8, 9)) * 100).astype(np.float32),
        "levels": levels,
        "whole": np.array([0, -5, 2_000_000_001], np.int32),
    }
    header = {"view": "grid", "title": "título </script>", "tokens": ["<s>", " a", "🙂"], "meta": {}, "text": "", "height": 1}
    raw = gzip.decompress(wire.pack(header, {}))
    parts = [wire._encode(array, {"half": "f16", "levels": "u8"}.get(name)) for name, array in known.items()]  # type: ignore[arg-type]
    assert raw  # the header alone is well formed
    return _pack_mixed(header, dict(zip(known, parts, strict=True))), known


def _pack_mixed(header: dict[str, object], parts: dict[str, tuple[dict[str, object], bytes]]) -> bytes:
    """As `wire.pack`, with a type for each array."""
    entries, chunks, offset = {}, [], 0
    for name, (entry, data) in parts.items():
        entries[name] = entry | {"offset": offset, "length": len(data)}
        chunks += [data, b"\0" * (-len(data) % 8)]
        offset += len(data) + -len(data) % 8
    head = json.dumps({"v": wire.VERSION, **header, "arrays": entries}, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return gzip.compress(wire.MAGIC + len(head).to_bytes(4, "little") + head + b"".join(chunks), mtime=0)


def as_fixture() -> dict[str, object]:
    """What TypeScript is to read, and what it is to find."""
    data, known = example()
    values = {name: [v if np.isfinite(v) else str(v) for v in array.ravel().tolist()] for name, array in known.items()}
    tolerance = {"half": 0.25, "levels": 0.02}
    return {
        "title": "título </script>",
        "tokens": ["<s>", " a", "🙂"],
        "data": base64.b64encode(data).decode(),
        "arrays": {
            name: {"shape": list(array.shape), "values": values[name], "tolerance": tolerance.get(name, 0)}
            for name, array in known.items()
        },
    }


def test_the_fixture_of_typescript_is_what_python_writes() -> None:
    kept = json.loads((UI / "tests" / "wire.json").read_text(encoding="utf-8"))
    made = as_fixture()
    now, then = (gzip.decompress(base64.b64decode(str(one.pop("data")))) for one in (made, kept))
    assert made == kept, "write it again: python tests/view/test_wire.py"
    assert now == then, "write it again: python tests/view/test_wire.py"


if __name__ == "__main__":
    (UI / "tests" / "wire.json").write_text(json.dumps(as_fixture(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
