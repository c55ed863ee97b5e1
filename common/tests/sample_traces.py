"""Hand-made traces and a strategy for random ones, shared by the tests of traces."""

from hypothesis import strategies as st

from common.request import Request, SamplingParams, Sequence
from common.step_record import Admission, Finish, ScheduledSlice
from common.tests.toy_scheduler import Job, Toy
from common.trace import Trace, TraceInfo


def make_seq(seq_id: int = 0, prompt_len: int = 5, max_tokens: int = 3) -> Sequence:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Sequence(seq_id, Request(f"r{seq_id}", tuple(range(prompt_len)), params))


def m1_trace(kv_cache: bool = True) -> Trace:
    """Two requests one after the other, contiguous KV: what M1 records."""
    trace = Trace(TraceInfo("m1_basic", kv_cache=kv_cache))
    seqs = [make_seq(0), make_seq(1, prompt_len=1, max_tokens=2)]
    for seq in seqs:
        trace.add_sequence(seq)
    for seq in seqs:
        queued = tuple(other.seq_id for other in seqs if other.seq_id >= seq.seq_id)
        admitted: tuple[Admission, ...] = (Admission(seq.seq_id),)
        while seq.num_output_tokens < seq.sampling_params.max_tokens:
            known = seq.num_tokens
            start = seq.num_computed_tokens if kv_cache else 0
            token = 10 + known
            seq.num_computed_tokens = known
            seq.append(token, 0.0)
            done = seq.num_output_tokens == seq.sampling_params.max_tokens
            trace.record(
                waiting=queued if admitted else queued[1:],
                running=() if admitted else (seq.seq_id,),
                admitted=admitted,
                slices=(
                    ScheduledSlice.of(
                        seq,
                        start=start,
                        num_tokens=known - start,
                        num_known_tokens=known,
                        token_ids=(token,),
                    ),
                ),
                finished=(Finish(seq.seq_id, "length"),) if done else (),
                elapsed_ms=float(known),
            )
            admitted = ()
    return trace


jobs = st.builds(
    Job,
    prompt_len=st.integers(1, 14),
    output_len=st.integers(1, 8),
    group=st.integers(0, 1),
    arrival_step=st.integers(0, 6),
)
toys = st.builds(
    Toy,
    jobs=st.lists(jobs, min_size=1, max_size=6),
    num_blocks=st.integers(6, 10),
    budget=st.integers(3, 20),
    prefix_caching=st.booleans(),
)


def busy_trace() -> Trace:
    """Six requests on twelve blocks: prefix hits, preemptions, evictions."""
    jobs = [Job(6, 8), Job(22, 6, 1), Job(9, 10, 0, 1), Job(3, 12, 2, 2), Job(17, 5, 1, 6)]
    toy = Toy([*jobs, Job(12, 9, 0, 7)], num_blocks=12, budget=12, prefix_caching=True)
    return toy.run()
