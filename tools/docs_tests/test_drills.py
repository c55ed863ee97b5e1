"""Drills of every stage, by running its tests against blanked and wrong versions of its files.

The quick suite (``tools/tests/test_drills_stages.py``) does this for the stages named there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.drills.check import check_stage
from tools.drills.spec import DRILLS
from tools.tests.test_drills_stages import QUICK

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob(f"m[0-9]_*/{DRILLS}"))


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in QUICK])
def test_blanks_fail_and_every_wrong_answer_is_caught(package: str, tmp_path: Path) -> None:
    assert check_stage(ROOT, package, tmp_path) == []
