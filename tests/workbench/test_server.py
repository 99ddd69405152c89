"""The server under attack: foreign pages, wrong tokens, broken messages. It refuses in a sentence, and goes on serving."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway import records
from cutaway.errors import CutawayError, NotReadable
from cutaway.workbench import recording, serving, state
from cutaway.workbench.session import Session
from tests.workbench import clicks
from tests.workbench.conftest import OPEN, Tab, client


def port_of(bench: serving.Workbench) -> int:
    return int(bench.address.split(":")[2].split("/")[0])


def get(bench: serving.Workbench, path: str = "/", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    line = http.client.HTTPConnection("127.0.0.1", port_of(bench), timeout=20)
    with closing(line):
        line.request("GET", path, headers={} if host is None else {"Host": host})
        answer = line.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_a_click_is_answered_with_numbers_and_figures(bench: serving.Workbench) -> None:
    tab = Tab(bench)
    tab.drawn(1)
    assert tab.told["about"]["layers"] == 3 and tab.told["state"]["differ"] == [2]
    before = tab.told["value"]["before"]
    tab.say({"do": "set", "fields": {"switches": [{"kind": "head", "layer": 1, "head": 2, "how": "patch"}], "pins": [[1, 2]]}})
    tab.drawn(2)
    value = tab.told["value"]
    logits = clicks.by_hand(bench.bench.session.model, bench.bench.session.state)[0, -1]
    assert value["before"] == before and value["after"] == pytest.approx(float(logits[3] - logits[5]), abs=1e-4)
    while "figure attention" not in tab.told:  # it comes after the numbers
        tab.hear()
    assert tab.told["figure attention"].arrays["patterns"].shape == (1, 6, 6)
    while not tab.told.get("figure map") or not tab.told["figure map"].meta["panels"][0]["marks"]:
        tab.hear()
    assert tab.told["figure map"].meta["panels"][0]["marks"][0][:2] == [2, 1]
    other = Tab(bench)  # a second tab shares the session
    other.drawn(2)
    assert other.told["state"]["state"] == tab.told["state"]["state"] and other.told["figure next"].meta["turn"] == 2
    other.say({"do": "step", "to": 1})
    while tab.until("state")["step"] != 1:
        pass


@pytest.mark.parametrize("what", ["strongest", "writers", "edges", "look"])
def test_questions_are_answered_with_progress(bench: serving.Workbench, what: str) -> None:
    tab = Tab(bench)
    tab.say({"do": "set", "fields": {"selected": {"layer": 2, "head": 1, "position": None}}})
    tab.say({"do": "ask", "what": what, "query": 4, "key": 2})
    answer = tab.until("answer")
    assert answer["rows"] and all(isinstance(row["value"], float) for row in answer["rows"])
    row = next(row for row in answer["rows"] if row["switch"])
    tab.say({"do": "set", "fields": {"switches": [row["switch"]]}})
    assert tab.until("value")["switched"] or tab.until("value")["switched"]
    if what == "strongest":
        session = bench.bench.session
        assert tab.told["value"]["after"] - tab.told["value"]["before"] == pytest.approx(row["value"], abs=1e-4)
        assert session.state.colour == "ablation"


def test_records_pages_and_code_come_out_of_the_folder_only(bench: serving.Workbench, tmp_path: Path) -> None:
    tab = Tab(bench)
    tab.say({"do": "set", "fields": {"switches": [{"kind": "mlp", "layer": 1}]}})
    tab.say({"do": "save", "what": "page"})
    page = tab.until("file")
    assert page["name"] == "experiment.html" and "<script" in page["text"] and 'src="' not in page["text"]
    tab.say({"do": "save", "what": "python"})
    assert "cutaway.sweep(" in tab.until("file")["text"]
    for name in ("../escape", "/tmp/escape", "a/b", "", "x" * 200, ".hidden"):
        tab.say({"do": "save", "what": "record", "name": name})
        assert "name" in tab.until("error")["text"]
    tab.say({"do": "save", "what": "record", "name": "first"})
    tab.until("notice")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["record.json", "tensors.safetensors"]
    assert (tmp_path / "records" / "first" / "record.json").is_file()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8500", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:8500"])
def test_other_hosts_are_refused(bench: serving.Workbench, host: str) -> None:
    assert get(bench, host=host)[0] == 421
    status, headers, body = get(bench)
    assert status == 200 and b"bench.js" in body and bench.bench.token.encode() not in body
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert get(bench, "/../secret")[0] == 404 and get(bench, "/static/figure.js")[0] == 404


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:8500", "http://localhost"]
)
def test_pages_of_other_origins_are_refused(bench: serving.Workbench, origin: str) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus):
        Tab(bench, origin=origin)


def test_a_socket_without_origin_or_token_is_closed(bench: serving.Workbench) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus), client.connect(f"ws://127.0.0.1:{port_of(bench)}/socket", proxy=None):
        pass
    assert Tab(bench, token="wrong").close_code() == 4403
    first = Tab(bench, hello=False)
    first.say({"do": "set", "fields": {}})
    assert first.close_code() == 4403
    second = Tab(bench, hello=False)
    second.say(b"\xff\xfe")
    assert second.close_code() == 4400


def test_a_message_beyond_the_bounds_closes_the_line(bench: serving.Workbench) -> None:
    large = Tab(bench)
    large.say(json.dumps({"do": "set", "fields": {"clean": "x" * 2**17}}))
    assert large.close_code() == 1009
    fast = Tab(bench)
    for _ in range(400):
        try:
            fast.say({"do": "stop"})
        except Exception:  # noqa: BLE001 (the line is closed under it, by whichever error)
            break
    assert fast.close_code() in (4429, 1006)
    Tab(bench).until("drawn")


def test_the_next_port_is_taken_where_one_is_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = taken.getsockname()[1]
        listening, port, moved = serving.free_port(at)
        listening.close()
        assert moved and at < port < at + serving.TRIED


# Broken messages, at the session that would take them.

TEXT = st.text(max_size=30)
FIELDS = st.sampled_from(list(state.State.__struct_fields__))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS | TEXT, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def mutated(draw: random.Random) -> str:
    """A good message with some of its characters changed, cut or doubled."""
    good = json.dumps(draw.choice([
        {"do": "set", "fields": {"switches": [{"kind": "head", "layer": 1, "head": 2, "how": "patch", "position": 3}]}},
        {"do": "set", "fields": {"clean": [1, 2, 3], "at": 2, "pins": [[0, 1]], "selected": {"layer": 1}}, "slide": True},
        {"do": "set", "fields": {"switches": [{"kind": "edge", "writer": "0.1", "reader": "2.3.k", "how": "scale"}]}},
        {"do": "step", "to": 1}, {"do": "peek", "layer": 1, "head": 1}, {"do": "ask", "what": "writers"},
    ]))  # fmt: skip
    letters = list(good)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(letters))
        put = draw.choice(["", '"', "9" * 12, "-1", "null", "[", "}", "\\", "e9", "é", "1.5"])
        letters[at : at + draw.choice([0, 1, 1, 4])] = put
    return "".join(letters)


def take(session: Session, text: str) -> None:
    """What a tab's message does to a session, refused or not: it always shows a state that can be looked at."""
    try:
        said: Any = state.parse(text)
        if isinstance(said, state.SetFields):
            session.set(said.fields, slide=said.slide)
        elif isinstance(said, state.GoToStep):
            session.go(said.to)
        elif isinstance(said, state.Peek):
            session.peek(said.layer, said.head)
    except CutawayError as error:
        assert str(error) and "\n" not in str(error).strip()


def broken_messages(count: int) -> None:
    session, draw = clicks.session_of(clicks.small_model()), random.Random(3)
    for number in range(count):
        take(session, mutated(draw))
        if number % 40 == 0:
            session.look()
    json.dumps(session.shown())


def test_broken_messages_are_refused_in_a_sentence() -> None:
    broken_messages(400)


def test_a_refusal_is_one_line_whatever_fields_are_called() -> None:
    with pytest.raises(NotReadable) as refused:
        state.parse('{"do": "ask", "a\\nb": 1}')
    assert "a b" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.fuzz
def test_thousands_of_broken_messages() -> None:
    broken_messages(4000)


@settings(max_examples=60)
@given(JSON)
def test_any_json_is_refused_in_a_sentence(value: Any) -> None:
    try:
        state.parse(json.dumps({"do": "set", "fields": value}))
        state.changed(state.State(), value)
    except CutawayError as error:
        assert str(error)


def test_bad_input_is_said() -> None:
    session = clicks.session_of(clicks.small_model())
    for fields, said in [
        ({"clean": list(range(33))}, "32"),
        ({"clean": [99]}, "vocabulary"),
        ({"clean": ""}, "empty"),
        ({"switches": [{"kind": "head", "layer": 3, "head": 0}]}, "no layer 3"),
        ({"switches": [{"kind": "edge", "writer": "2.0", "reader": "1.0.q"}]}, "no edge"),
        ({"switches": [{"kind": "edge", "writer": "two", "reader": "logits"}]}, "no component"),
        ({"right": 40}, "no token 40"),
        ({"pins": [[0, 9]]}, "no head 0.9"),
        ({"colour": "attention", "source": "nowhere"}, "no source"),
        ({"at": 9}, "no position 9"),
        ({"surprise": 1}, "surprise"),
    ]:
        before = session.state
        with pytest.raises(CutawayError, match=said):
            session.set(fields)
        assert session.state is before
    session.set({"corrupted": [1, 2, 3]})
    with pytest.raises(CutawayError, match="9 and 3 tokens"):
        session.set({"switches": [{"kind": "head", "layer": 1, "head": 1, "how": "patch"}]})
    assert "patching is off" in session.shown()["why"]
    session.set({"switches": [{"kind": "head", "layer": 1, "head": 1, "how": "resample"}]})
    session.look()
    session.set({"corrupted": [1, 2, 3, 4, 5, 6, 7, 8, 9], "switches": [{"kind": "head", "layer": 1, "head": 1, "how": "patch"}]})
    assert "switched back on: head 1.1 patched" in session.set({"corrupted": [1, 2]})[0]
    assert session.state.switches == ()


# What is taken away under it.


def test_a_model_whose_files_are_removed_goes_on(tmp_path: Path) -> None:
    from cutaway import HookedTransformer, sources

    folder = tmp_path / "model"
    shutil.copytree(Path(sources.__file__).parent / "bundled" / "attn-only-2l", folder)
    model = HookedTransformer.from_pretrained(str(next(folder.glob("*.safetensors"))), device="cpu")
    session = Session(model, "attn-only-2l")
    shutil.rmtree(folder)
    session.set({"clean": "The king said", "switches": [{"kind": "head", "layer": 1, "head": 2}]})
    session.look()
    place, _ = recording.save(session, tmp_path / "record")
    assert records.replay(records.read_record(place)).same_bits  # the bundled model itself
    assert not any(point.listening for point in model.hook_points())


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """A process of its own, which takes its seconds to start: what a terminal sees."""
    command = [
        sys.executable,
        "-m",
        "cutaway.cli",
        "open",
        "attn-only-2l",
        "--no-browser",
        "--out",
        str(tmp_path),
        "--port",
        "8640",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        address = process.stdout.readline().strip()
        tab = Tab(SimpleNamespace(address=address))  # type: ignore[arg-type]
        tab.until("drawn")
        tab.say({"do": "ask", "what": "strongest"})
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    OPEN.close()
    assert "Traceback" not in said and "interrupted: the workbench has ended" in said and str(tmp_path) in said
    assert list(tmp_path.iterdir()) == []
