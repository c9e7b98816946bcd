"""Which encoding? The same model, weights and batches with each; only the encoding differs.

    python examples/which_encoding.py --out docs/which           # two cores, hours
    python examples/which_encoding.py --tier gpu --data imagenet100 --out which-gpu
    python examples/which_encoding.py --only size --encodings learned rope --out runs/sizes
    python examples/which_encoding.py --tier gpu --dry --out runs/dry   # every step, a minute

Every finished training is kept in OUT/results.json: the same command goes on where it was
stopped. Each call ends with the page OUT.md and the figures in OUT, of what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

try:
    import matplotlib  # noqa: F401
    import scipy  # noqa: F401
    import torchvision  # noqa: F401
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[which]"') from None

import torch
from which.contenders import CONTENDERS
from which.page import write_page
from which.plan import PARTS, Plan, best_rate
from which.results import Job, Record, Records, Results
from which.sources import FASHION, Source, open_source
from which.tiers import TIERS, Tier, smallest
from which.work import find_out

from posenc.bench.timing import environment


def main() -> None:
    """Finds out what is missing, and writes the page."""
    parser = make_parser()
    args = parser.parse_args()
    tier = smallest(TIERS[args.tier]) if args.dry else TIERS[args.tier]
    plan = Plan(tier, args.encodings, args.seeds, args.only)
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = args.data or default_data(args, Path(folder))
            check_device(tier)
            source = open_source(tier.name, data, tier.pixels, tier.validation)
            results = Results(args.out / "results.json", asdict(tier), describe(source))
            records = results.read()
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
        try:
            missing = run(plan, data, results, records, args)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
    if records:
        print(write_page(args.out))
    if missing:
        print("not all is there yet: the same command goes on", file=sys.stderr)


def run(
    plan: Plan, data: Path, results: Results, records: Records, args: argparse.Namespace
) -> bool:
    """Until all is there, or the time is over; whether something is missing."""
    deadline = time.monotonic() + 60 * args.minutes
    results.write(records, command=command())
    with several(args.workers) as pool:
        for stage in plan.stages(records):
            jobs = [job for job in stage if not plan.is_done(job, records)]
            # Two timings at a time would disturb each other.
            here = None if stage and stage[0].part == "cost" else pool
            for job, record in finished(jobs, plan, data, records, here, deadline):
                records[job] = {**record, **provenance(plan.tier)}
                results.write(records, command=command())
            if not all(plan.is_done(job, records) for job in stage):
                return True
    return False


@contextlib.contextmanager
def several(workers: int) -> Iterator[Executor | None]:
    """So many processes, which are idle until there is work; None for none."""
    if not workers:
        yield None
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def finished(
    jobs: list[Job],
    plan: Plan,
    data: Path,
    records: Records,
    pool: Executor | None,
    deadline: float,
) -> Iterator[tuple[Job, Record]]:
    """Each job with what was found, as they come; none begins after the deadline."""
    table = best_rate(records, "learned")
    rates = {job.encoding: (best_rate(records, job.encoding), table) for job in jobs}
    calls = [
        (job, plan.tier, data, rates[job.encoding], plan.kinds_of(job, records)) for job in jobs
    ]
    bar = tqdm(total=len(jobs), desc=jobs[0].part if jobs else "", unit="run", disable=not jobs)
    if pool is None or time.monotonic() > deadline:
        for call in calls:
            if time.monotonic() < deadline:
                yield call[0], find_out(*call)
                bar.update()
        return
    waiting = {pool.submit(find_out, *call): call[0] for call in calls}
    while waiting:
        for done in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(done), done.result()
            bar.update()
        if time.monotonic() > deadline:
            waiting = {call: job for call, job in waiting.items() if not call.cancel()}


def provenance(tier: Tier) -> Record:
    """Of a record: the code and the machine."""
    names = ("commit", "device", "python", "torch", "timm")
    known = environment(torch.device(tier.device))
    return {name: known[name] for name in names}


def command() -> str:
    """As it was typed."""
    return " ".join(["python", "examples/which_encoding.py", *sys.argv[1:]])


def default_data(args: argparse.Namespace, folder: Path) -> Path:
    """Where a tier finds images without --data.

    Raises:
        ValueError: the tier has no such place.
    """
    if args.tier == "cpu":
        return FASHION
    if not args.dry:
        raise ValueError("--tier gpu needs --data: a folder with train/CLASS and val/CLASS")
    from which.rehearsal import draw_photographs

    draw_photographs(folder)
    return folder


def describe(source: Source) -> dict[str, int]:
    """What tells one set of images from another, without the place where it lies."""
    return {"classes": source.num_classes, "training images": source.available}


def check_device(tier: Tier) -> None:
    """Before anything runs.

    Raises:
        ValueError: the tier's device is not there.
    """
    if tier.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--tier {tier.name} needs a GPU, and torch sees none; --dry rehearses it on a CPU"
        )


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tier", choices=TIERS, default="cpu", help="sizes and data")
    parser.add_argument("--out", type=Path, required=True, help="folder of results and figures")
    parser.add_argument("--data", type=Path, help="folder of images; cpu: Fashion-MNIST")
    parser.add_argument("--dry", action="store_true", help="every step with a tiny model, on a CPU")
    parser.add_argument(
        "--encodings", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME"
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="trainings of each encoding")
    parser.add_argument(
        "--only", nargs="+", default=list(PARTS), choices=PARTS, help="parts of the comparison"
    )
    parser.add_argument(
        "--workers", type=_natural, default=2, help="trainings at a time; 0: one, in this process"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="after which no training begins"
    )
    return parser


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return int(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
