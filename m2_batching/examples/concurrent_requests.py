"""Requests that arrive by a Poisson clock, served by M1 and by M2 as they come.

    python m2_batching/examples/concurrent_requests.py
    python m2_batching/examples/concurrent_requests.py --rate 4 --requests 32 --slots 16

A request's clock starts when it is due, so an engine that falls behind sees its TTFT grow. Prints
the percentiles of TTFT and of the gaps between tokens (ITL), and Little's law beside the mean
number of requests in the system.
"""

from __future__ import annotations

from common.cli_errors import OneLineParser, run
from common.metrics import Distribution, ServingMetrics, littles_law, serving_metrics
from common.serve import GeneratingEngine, SteppingEngine, serve
from common.tables import format_table
from common.workload import Workload, random_lengths
from m1_basic.engine import LLMEngine as M1Engine
from m2_batching.engine import LLMEngine as M2Engine


def main(argv: list[str]) -> int:
    """Serve one workload with both engines. Returns the exit code."""
    parser = OneLineParser(description="Poisson arrivals: TTFT and ITL of M1 and M2.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--requests", type=int, default=16, help="how many arrive")
    parser.add_argument("--rate", type=float, default=2.0, help="arrivals per second on average")
    parser.add_argument("--slots", type=int, default=8, help="sequences that M2 runs together")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and arrivals")
    parser.add_argument("--smoke", action="store_true", help="few and short requests")
    args = parser.parse_args(argv)
    count, outputs = (4, (2, 6)) if args.smoke else (args.requests, (8, 48))
    rate = 20.0 if args.smoke else args.rate
    lengths = random_lengths(count, (8, 48), outputs, temperature=0.0, seed=args.seed)
    workload = lengths.with_poisson_arrivals(rate)
    longest = max(len(r.prompt_token_ids) + r.sampling_params.max_tokens for r in workload.requests)
    options = {"device": args.device, "max_model_len": longest}
    print(
        f"{count} requests at {rate:g}/s, the last due after {workload.requests[-1].arrival:.1f} s"
    )
    for name, engine in (
        ("m1_basic", M1Engine(args.model, **options)),
        ("m2_batching", M2Engine(args.model, **options, max_num_seqs=args.slots)),
    ):
        report(name, measure(engine, workload))
    return 0


def measure(engine: GeneratingEngine | SteppingEngine, workload: Workload) -> ServingMetrics:
    """Serve the workload in real time, after one request to warm up."""
    serve(engine, workload.subset(1))
    return serving_metrics(serve(engine, workload))


def report(name: str, found: ServingMetrics) -> None:
    """Print percentiles in milliseconds, and Little's law."""
    print(
        f"\n{name}: {found.output_throughput:.1f} tok/s, {found.request_throughput:.2f} requests/s"
    )
    rows = [line("TTFT", found.ttft), line("ITL", found.itl)]
    print(format_table(rows))
    if found.e2e is not None:
        expected = littles_law(found.request_throughput, found.e2e.mean)
        print(
            f"in the system on average: {found.mean_concurrency:.2f} requests; Little: "
            f"{found.request_throughput:.2f}/s × {found.e2e.mean:.2f} s = {expected:.2f}"
        )


def line(name: str, values: Distribution | None) -> dict[str, object]:
    """One row of the table."""
    if values is None:
        return {"ms": name}
    points = {key: 1e3 * getattr(values, key) for key in ("p50", "p90", "p99", "max")}
    return {"ms": name, **points}


if __name__ == "__main__":
    run(main)
