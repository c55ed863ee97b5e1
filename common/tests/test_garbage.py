"""The collector leaves frozen objects alone, and later garbage is still collected."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from common.garbage import freeze_imports

class Node: pass

freeze_imports()
frozen = gc.get_freeze_count()
node = Node(); node.itself = node
gone = weakref.ref(node)
freeze_imports()
del node
gc.collect()
print(frozen > 1000, gc.get_freeze_count() <= frozen, gone() is None)
"""


def test_imports_are_frozen_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]
