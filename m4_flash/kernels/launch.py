"""Programmatic dependent launch: a kernel's programs come to life while the one before still runs.

Between two kernels of a graph a GPU is idle for about a microsecond: the first must end, its writes
must be seen, the second must be set up. A decode step has some 250 kernels, many of them shorter
than that. From Hopper on, a kernel may let its successor start early and a successor may wait for
its predecessor by itself, so the setting up, and whatever needs no result, overlaps::

    plain         | norm  |····| read W, multiply |····| rope |
    programmatic  | norm  |
                    | read W | wait | multiply |
                                      | wait     | rope |

A weight matrix depends on no kernel: :mod:`m4_flash.kernels.gemv` reads it before it waits.

The rule that keeps this correct: every kernel launched so waits before it reads or writes anything
that another kernel touches. Then its end implies the end of all kernels before it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the next kernel start. It waits for the end of this one by itself."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(PDL: tl.constexpr):
    """Wait for the end of the kernel before, and so of all before it; at once if called again."""
    if PDL:
        gdc_wait()


@triton.jit
def chain(PDL: tl.constexpr):
    """Let the next kernel start, then wait for the end of the one before."""
    start_next(PDL)
    wait_for_last(PDL)


def launch_options(pdl: bool) -> dict[str, bool]:
    """Keywords of a launch whose kernel calls :func:`chain`, or both halves, with ``PDL=pdl``."""
    return {"launch_pdl": True} if pdl else {}
