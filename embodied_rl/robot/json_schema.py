"""The JSON schema of robot.yaml, for editors: `python -m embodied_rl.robot.json_schema > robots/schema.json`.

It helps while typing; `load_robot` is the judge. Nothing is required here, since a robot may extend another.
"""

from __future__ import annotations

import json
from typing import Any

from embodied_rl.robot.schema import ENTRIES, RobotPage


def json_schema() -> dict[str, Any]:
    """Describe every key of robot.yaml with its bounds."""
    schema = _stripped(RobotPage.model_json_schema())
    for key in ENTRIES:
        section = schema["properties"][key]
        section["additionalProperties"] = {"anyOf": [section["additionalProperties"], {"type": "null"}]}
        section["type"] = ["object", "null"]
        section.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "embodied_rl robot", **schema}


def _stripped(value: Any) -> Any:
    """Leave out what pydantic adds of itself, and what a robot that extends another may leave out."""
    if isinstance(value, dict):
        # `properties` holds our keys, one of which may be called as such a word
        return {
            key: _properties(one) if key in ("properties", "$defs") else _stripped(one)
            for key, one in value.items()
            if key not in ("title", "required")
        }
    return [_stripped(one) for one in value] if isinstance(value, list) else value


def _properties(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _stripped(one) for key, one in value.items()}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
