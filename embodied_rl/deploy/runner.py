"""The runner of an export: run_policy.py with what the page's task family adds to it."""

from __future__ import annotations

import ast
from pathlib import Path

from embodied_rl.deploy import run_policy
from embodied_rl.deploy.contract import DeployError
from embodied_rl.family import load_family
from embodied_rl.strict_yaml import display

#: Stands in run_policy.py where a family's part goes.
_MARK = "# what the task family adds\n"


def make_runner(task: str | None) -> tuple[str, set[str]]:
    """Write the runner for pages of a task family; its text, and the observation terms that it knows.

    Raises:
        DeployError: the family's deploy.py needs more than NumPy, or says nothing of observations; one line.
    """
    base, path = Path(run_policy.__file__).read_text(encoding="utf-8"), load_family(task).deployment() if task else None
    assert _MARK in base
    known = set(run_policy.OBSERVATIONS)
    if path is None:
        return base.replace(_MARK, "", 1), known
    code, names = _part(path)
    apart = "" if code.startswith("OBSERVATIONS") else "\n\n"
    return base.replace(_MARK, f"{apart}{code}", 1), known | names


def _part(path: Path) -> tuple[str, set[str]]:
    """Read a family's part: what stands below its docstring and imports, and the terms that it names."""
    source = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(source, str(path))
    except SyntaxError as error:
        raise DeployError(f"task: {display(path)}:{error.lineno}: not valid Python: {error.msg}") from None
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in imports:
        if ast.unparse(node) != "import numpy as np":
            raise DeployError(f"task: {display(path)}:{node.lineno}: {ast.unparse(node)}: a robot has `import numpy as np` alone")
    rest = [node for node in body if node not in imports]
    tables = [node for node in rest if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OBSERVATIONS"]
    if len(tables) != 1 or not isinstance(tables[0].value, ast.Dict):
        raise DeployError(f"task: {display(path)}: has no OBSERVATIONS = {{term: function(policy, state, term)}}")
    names = {str(key.value) for key in tables[0].value.keys if isinstance(key, ast.Constant)}
    start = min(node.lineno - 1 for node in rest)
    code = "".join(source.splitlines(keepends=True)[start:])
    return code.replace("OBSERVATIONS = {", "OBSERVATIONS |= {", 1), names
