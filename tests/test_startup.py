from __future__ import annotations

import gc
import subprocess
import sys

from embodied_rl.startup import importing


def test_check_looks_through_nothing_that_it_imports() -> None:
    code = (
        "import gc, embodied_rl.cli as cli; assert 'pydantic' not in __import__('sys').modules\n"
        "before = gc.get_stats()[2]['collections']\n"
        "assert cli.main(['check', 'go2_flat', 'env.num_envs=8']) == 0\n"
        "assert gc.get_stats()[2]['collections'] == before and gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_with_torch_there_already_nothing_changes() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()  # Python 3.12 counts some objects of its own
    with importing():
        assert gc.isenabled() and gc.get_freeze_count() == before
