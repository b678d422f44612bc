from __future__ import annotations

import json

from embodied_rl import paths
from embodied_rl.config.json_schema import json_schema
from embodied_rl.config.terms import find_terms


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((paths.shipped("configs") / "schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "run: python -m embodied_rl.config.json_schema > configs/schema.json"


def test_the_schema_knows_terms_bounds_and_formulas() -> None:
    schema = json_schema()["properties"]
    terms, _ = find_terms()
    assert schema["rewards"]["properties"].keys() == terms["reward"].keys()
    assert schema["ppo"]["properties"]["gamma"] == {"default": 0.99, "maximum": 1, "minimum": 0, "type": "number"}
    rate = schema["rewards"]["properties"]["action_rate"]
    assert rate["properties"]["weight"] == {"type": "number"}
    assert rate["description"] == terms["reward"]["action_rate"].doc
