"""The seed of a completion: the request's own, or one derived from the engine's.

Derived from names, never from the order of draws, so that a request gives the same tokens in every
stage, alone or batched, before and after a preemption.
"""

from __future__ import annotations

import hashlib

from common.request import Sequence


def sequence_seed(engine_seed: int, sequence: Sequence) -> int:
    """Seed of one completion, in [0, 2**63).

    ``SamplingParams.seed + index`` where the request has a seed; otherwise a hash of the engine's
    seed, the request's id and the index.
    """
    if sequence.sampling_params.seed is not None:
        return (sequence.sampling_params.seed + sequence.index) % 2**63
    name = f"{engine_seed}/{sequence.request.request_id}/{sequence.index}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63
