from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from embodied_rl.problems import ConfigError
from embodied_rl.strict_yaml import dump, merge, parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e5", 500000.0),
        (".5", 0.5),
        ("-1.5E+2", -150.0),
        ("3.", 3.0),
        ("+7", 7),
        ("-.inf", -math.inf),
        ("true", True),
        ("{x: [], y: }", {"x": [], "y": {}}),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", {}),
        *((word, word) for word in ("on", "off", "yes", "No", "True", "NULL", "12:30", "2024-01-01", "007", "0x1f", "1_000")),
        ("9" * 5000, "9" * 5000),
        ('"1"', "1"),
        ("'true'", "true"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("[&x [1], *x]", [[1], [1]]),
        ("|\n 1\n", "1\n"),
    ],
)
def test_a_word_means_what_it_says(text: str, value: Any) -> None:
    parsed = parse(f"key: {text}", "p").value["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(parse(".nan", "p").value)


def test_places_are_those_of_the_keys() -> None:
    places = parse("a:\n  b: [1,\n      2]\nc:\n  - x\n  - {y: 3}\n", "p").places
    expected = {(): 1, ("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3, ("c",): 4, ("c", 1): 6}
    assert {path: places[path] for path in expected} == {path: f"p:{line}" for path, line in expected.items()}
    assert places["c", 1, "y"] == "p:6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "p:2: b.c: written twice, first at p:2"),
        ("a:\n  1: x", "p:2: a: a key must be a string; put it in quotes"),
        ("true: x", "p:1: a key must be a string; put it in quotes"),
        ("? [a]\n: x", "p:1: a key must be a string; put it in quotes"),
        ("a: &x {y: 1}\nb:\n  <<: *x", "p:3: b: merge keys (<<) are not supported; `extends` merges pages"),
        ("a: !!python/name:os.system x", "p:1: a: tags like !!python/name:os.system are not allowed"),
        ("a: !!float 1", "p:1: a: tags like !!float are not allowed"),
        ("a: &x [*x]", "p:1: a[0]: an alias that contains itself"),
        ("a: {b: 0,5, c: 1}", "p:1: a: 0,5 is no number; a decimal has a point: 0.5"),
    ],
)
def test_refused_but_readable(text: str, message: str) -> None:
    assert [str(problem) for problem in parse(text, "p").problems] == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1", "p:2: not valid YAML: found character '\\t' that cannot start any token (indent with spaces)"),
        ("a: 1\nb: [1, 2", "p:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n---\nb: 2", "p:2: not valid YAML: but found another document"),
        ("a: \x07", "p: not valid YAML: unacceptable character #x0007: special characters are not allowed"),
        ("[" * 3000, "p: nested too deeply"),
    ],
)
def test_not_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "p")
    assert str(error.value) == message


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read(tmp_path / "mark.yaml").value == {"a": 1}
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for name, message in [("latin.yaml", "not UTF-8 text (byte 3)"), ("gone.yaml", "no such file"), ("", "not a file")]:
        with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "value",
    [
        {"section": {"entry": {"a": 1e-8, "b": [1.0, 2], "c": None, "d": True}, "empty": {}, "list": []}},
        {
            "words": [
                "1e-3",
                "on",
                "true",
                "null",
                "~",
                "",
                "a: b",
                "# no",
                "12",
                "x y",
                "\u00e9\n\"'",
                "-",
                "a/b-c.d",
                "[x]",
            ]
        },
        {"numbers": [1e300, -0.0, 1 / 3, 10**18, 1e16]},
        {"long": {"entry": {f"parameter_{i}": 1.0 for i in range(20)}}},
        {"1": {"true": 1}},
    ],
)
def test_what_is_dumped_reads_back(value: dict[str, Any]) -> None:
    text = dump(value)
    assert repr(parse(text, "p").value) == repr(value)
    assert max(map(len, text.splitlines())) <= 140


def test_sections_are_blocks_and_entries_are_lines() -> None:
    assert dump({"a": {"b": {"c": 1.5, "d": [0, 1]}, "e": {}}, "f": "x"}) == "a:\n  b: {c: 1.5, d: [0, 1]}\n  e: {}\nf: x\n"


def test_what_is_left_open_is_told_where_it_begins() -> None:
    for text, said in (
        (
            'a: 1\nb: "x\nc: 3\n',
            "p:2: not valid YAML: while scanning a quoted scalar: found unexpected end of stream before line 4",
        ),
        ("a: {b: 1\nc: 3\n", "p:1: not valid YAML: while parsing a flow mapping: expected ',' or '}', but got ':' before line 2"),
    ):
        with pytest.raises(ConfigError) as error:
            parse(text, "p")
        assert str(error.value) == said


def test_a_mapping_laid_over_what_is_none_hides_no_mistake() -> None:
    base, top = parse("env: seed:1\nrewards:\n  pose: 2.0\nname: x", "p"), parse("env: {seed: 2}\nrewards: {pose: {a: 1}}", "q")
    merged = merge(base, top, lambda keys: keys[0] == "rewards", "term", ("env", "rewards"))
    said = ['p:1: env: "seed:1" is not a mapping', "p:3: rewards.pose: 2.0 is not a mapping"]
    assert [str(problem) for problem in merged.problems] == said


def test_a_number_of_many_digits_is_one() -> None:
    assert parse(f"a: {10**40}", "p").value == {"a": 10**40}
