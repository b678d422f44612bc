"""The page's JSON schema, for editors: `python -m embodied_rl.config.json_schema > configs/schema.json`.

It helps while typing; `load` is the judge.  Nothing is required here, since a page may extend another, and sections of
terms allow names that are not listed, since a page may bring its own terms.
"""

from __future__ import annotations

import json
from typing import Any

from embodied_rl.config.page import Model, Page
from embodied_rl.config.terms import SECTIONS, Terms, find_terms
from embodied_rl.config.validate import entry_model
from embodied_rl.family import family_names, load_family


def json_schema() -> dict[str, Any]:
    """Every section with its keys, bounds and defaults; every shipped term with its parameters."""
    terms, _ = find_terms()
    sections = {name: _section(name, terms) for name in Page.model_fields if name not in ("name", "terms", "task", "robot")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "embodied_rl page",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "description": "of the task; the file's name where it is not given"},
            "extends": {"type": "string", "description": "a page to merge this one over: a path or a shipped name"},
            "terms": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Python files with terms of your own",
            },
            "task": {"type": ["string", "null"], "description": "the task family: a shipped name, or a folder with score.py"},
            "robot": {"type": "string", "description": "a shipped name, or a folder with robot.yaml"},
            **sections,
        },
    }


def _section(name: str, terms: Terms) -> dict[str, Any]:
    if name == "score":
        return _score()
    if name not in SECTIONS:
        return _model(Page.model_fields[name].annotation)  # type: ignore[arg-type]
    entry = {"type": ["object", "null"]}
    entries = {
        "type": ["object", "null"],
        "properties": {term: _entry(entry_model(one)) for term, one in sorted(terms[SECTIONS[name]].items())},
        "additionalProperties": {**entry, "properties": {"term": {"type": "string"}}},
    }
    if name == "observations":
        return {"type": ["object", "null"], "additionalProperties": entries}
    return entries


def _score() -> dict[str, Any]:
    """Every parameter of every shipped family's score, by name; a family of one's own has others."""
    properties: dict[str, list[dict[str, Any]]] = {}
    for family in map(load_family, family_names()):
        for name, schema in _model(entry_model(family.score))["properties"].items():
            properties.setdefault(name, []).append(schema)
    merged = {name: {"anyOf": several} if len(several) > 1 else several[0] for name, several in sorted(properties.items())}
    return {"type": ["object", "null"], "properties": merged}


def _entry(model: type[Model]) -> dict[str, Any]:
    schema = _model(model)
    return {**schema, "type": ["object", "null"], "properties": {"term": {"type": "string"}, **schema["properties"]}}


def _model(model: type[Model]) -> dict[str, Any]:
    schema = model.model_json_schema()
    properties = {
        key: {word: one for word, one in value.items() if word != "title"} for key, value in schema.get("properties", {}).items()
    }
    described = {"description": schema["description"]} if schema.get("description") else {}
    return {"type": "object", **described, "additionalProperties": False, "properties": properties}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
