"""The JSON schema of robot.yaml, and the page of docs that explains the same keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from embodied_rl import paths
from embodied_rl.robot import load_robot, robot_names
from embodied_rl.robot.json_schema import json_schema

DOCS = Path(__file__).resolve().parents[2] / "docs" / "robots.md"


def _keys() -> Iterator[tuple[str, str, dict[str, Any]]]:
    schema = json_schema()
    for section, properties in {"": schema["properties"], **{k: v["properties"] for k, v in schema["$defs"].items()}}.items():
        for key, value in properties.items():
            yield section, key, value


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((paths.shipped("robots") / "schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "run: python -m embodied_rl.robot.json_schema > robots/schema.json"


def test_every_key_is_described() -> None:
    keys = [*_keys()]
    assert {"motors", "joints", "groups", "feet", "bodies", "mirror", "extends", "weld"} <= {key for _, key, _ in keys}
    assert [(section, key) for section, key, value in keys if not value.get("description")] == []


def test_bounds_and_entries_that_null_takes_away() -> None:
    schema = json_schema()
    assert "required" not in json.dumps(schema)
    joint = schema["$defs"]["Joint"]["properties"]
    assert joint["stiffness"]["anyOf"] == [{"minimum": 0, "type": "number"}, {"type": "null"}]
    assert schema["properties"]["joints"]["additionalProperties"] == {"anyOf": [{"$ref": "#/$defs/Joint"}, {"type": "null"}]}


def test_shipped_robots_name_it_for_editors() -> None:
    for name in robot_names():
        page = paths.shipped("robots") / name / "robot.yaml"
        (hint,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert (page.parent / hint).resolve() == (paths.shipped("robots") / "schema.json").resolve()


def test_the_docs_explain_every_key_and_no_other() -> None:
    text = DOCS.read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert told == {key for _, key, _ in _keys()}


def test_the_docs_examples_load(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    robots = {}
    for text in examples:
        page = yaml.safe_load(text)
        folder = tmp_path / page["name"]
        folder.mkdir()
        (folder / "robot.yaml").write_text(text, encoding="utf-8")
        if "model" in page:
            (folder / page["model"]).touch()  # read later, by mjspec
        robots[page["name"]] = load_robot(str(folder))
    assert robots["dog"].effort_limit[3] == 40.0
    assert robots["biped_legs"].welded == {"left_elbow": 0.6, "right_elbow": 0.6}
    assert robots["biped_legs"].groups.keys() == {"all", "legs"}
