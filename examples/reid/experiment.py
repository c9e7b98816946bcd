"""Does position that knows the body help? The same ViT and budget with each encoding.

    python examples/reid/experiment.py --out docs/reid           # 8x4 patches, on a CPU
    python examples/reid/experiment.py --out full --full         # 16x8 patches, for a GPU

Every training of a seed has the same people, the same first weights and the same batches; only the
encoding differs. Each network is then tested on crops as trained, shifted, taller, partial and
occluded. Each finished training is kept in experiment.runs.jsonl: the same command goes on, also
with more seeds or contenders. When all are there, or with --report for those that are, writes
experiment.json, .md and .png; contenders may differ in their number of seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch

try:
    from data.market import read_dataset
    from findings.conditions import score_all
    from findings.kept import Job, Kept
    from findings.report import write_report
    from generate import Recipe, write
    from model.network import build_network
    from model.positions import describe_positions, has_own_table
    from options import Parser, RefusedError, add_fields, command, read_fields
    from tqdm import tqdm
    from training.checkpoints import load_network
    from training.config import Config
    from training.run import train
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

import posenc
from posenc.bench.timing import commit

CONTENDERS = {  # name -> the encoding and its options
    **{
        name: (name, {})
        for name in (
            *("none", "learned", "sinusoidal", "peg", "rope", "irpe", "swin", "quadratic"),
            *("human_part", "body"),
        )
    },
    "body(adaptive)": ("body", {"adaptive": True}),
    **{
        name: (name, {})
        for name in ("learned+peg", "learned+human_part", "body+peg", "body+human_part")
    },
}
POOLS = {"CLS": "token", "mean": "avg"}
FULL = {
    "height": 128,
    "width": 64,
    "vit_args": '{"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, '
    '"pos_embed": "none", "weight_init": "moco"}',
}
RUNS = "experiment.runs.jsonl"


def main() -> None:
    """Trains what is missing, tests it, and writes the report when all are there."""
    args = parse_arguments()
    jobs = [Job(*job) for job in itertools.product(args.encodings, args.pools, range(args.seeds))]
    config = Config(
        **{
            **(FULL if args.full else {}),
            "epochs": args.epochs,
            "warmup_epochs": 1,
            "tracker": "none",
            "evaluate_every": args.epochs,
            "checkpoint_every": args.epochs,
            **args.config,
        }
    )
    recipe = read_fields(Recipe, args)
    kept = Kept(args.out / RUNS, {"config": asdict(config), "recipe": asdict(recipe)})
    if args.report:
        results = kept.read()
        jobs = [job for job in jobs if job in results]
    else:
        results = run_all(jobs, config, recipe, kept, workers=args.workers, minutes=args.minutes)
    if not jobs:
        raise RefusedError(f"{kept.path} has no finished training to report")
    if missing := [job for job in jobs if job not in results]:
        print(f"{len(jobs) - len(missing)} of {len(jobs)} trainings are done, {kept.path} has them")
        print("the same command goes on; the report is written when all are there")
        return
    report = make_report([results[job] for job in jobs], config, recipe)
    (args.out / "experiment.json").write_text(json.dumps(report, indent=1) + "\n")
    print(write_report(report, args.out))


def make_report(results: list[dict[str, Any]], config: Config, recipe: Recipe) -> dict[str, Any]:
    """With how it came about, for experiment.json."""
    command = ["python", "examples/reid/experiment.py", *sys.argv[1:]]
    origins = {name: sorted({one[name] for one in results}) for name in ("commit", "versions")}
    return {
        "command": " ".join(word for word in command if word != "--report"),
        "config": asdict(config),
        "recipe": asdict(recipe),
        **{name: ", ".join(found) for name, found in origins.items()},
        "positions": "beside its own" if has_own_table(_vit(config)) else "alone",
        "cpu_minutes": round(sum(one["seconds"] for one in results) / 60, 1),
        "results": results,
    }


def provenance() -> dict[str, str]:
    """Of this code, where git knows it, and of what it stands on."""
    versions = {"torch": torch.__version__, "timm": timm.__version__, "posenc": posenc.__version__}
    return {
        "commit": commit(),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{n} {v}" for n, v in versions.items())]
        ),
    }


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of trainings and report")
    parser.add_argument(
        *("--encodings", "--contenders"),
        nargs="+",
        default=list(CONTENDERS),
        choices=CONTENDERS,
        help="those compared",
    )
    parser.add_argument(
        "--pools", nargs="+", default=list(POOLS), choices=POOLS, help="where features come from"
    )
    parser.add_argument("--seeds", type=_positive, default=5, help="trainings of each encoding")
    parser.add_argument("--full", action="store_true", help="16x8 patches, 6 layers, 40 epochs")
    parser.add_argument("--epochs", type=_positive, help="default 8, with --full 40")
    parser.add_argument(
        "--config", type=_options, default={}, help="JSON; other options of train.py"
    )
    add_fields(parser, Recipe, only=("train_people", "test_people", "wardrobe"))
    parser.add_argument(
        "--workers", type=int, default=2, help="trainings at a time; 0: one, in this process"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="after which no training begins"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing, and report what is finished"
    )
    args = parser.parse_args()
    args.epochs = args.epochs or (40 if args.full else 8)
    return args


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _options(text: str) -> dict[str, Any]:
    options = json.loads(text)
    known = asdict(Config())
    if not isinstance(options, dict) or options.keys() - known.keys():
        raise argparse.ArgumentTypeError(
            f'must be an object of options of train.py such as {{"height": 128}}, got {text}'
        )
    return options


def run_all(
    jobs: list[Job],
    config: Config,
    recipe: Recipe,
    kept: Kept,
    *,
    workers: int = 2,
    minutes: float = float("inf"),
) -> dict[Job, dict[str, Any]]:
    """A record for each job that is finished, now or by an earlier call.

    Raises:
        RefusedError: some failed; the others are kept.
    """
    results = kept.read()
    missing = [job for job in jobs if job not in results]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        data = {seed: Path(folder) / f"data-{seed}" for seed in {job.seed for job in missing}}
        for seed, path in data.items():
            write(path, replace(recipe, seed=seed))
        trainings = [(job, config, data[job.seed]) for job in missing]
        for job, record in tqdm(
            _finished(trainings, workers, time.monotonic() + 60 * minutes),
            total=len(missing),
            unit="run",
            desc="experiment",
        ):
            if isinstance(record, BaseException):
                failed.append(f"{job}: {record!r}")
                continue
            results[job] = {**job._asdict(), **record, **provenance()}
            kept.add(results[job])
    if failed:
        raise RefusedError(f"{len(failed)} trainings failed, {kept.path} has the others: {failed}")
    return results


Training = tuple[Job, Config, Path]


def _finished(
    trainings: list[Training], workers: int, deadline: float
) -> Iterator[tuple[Job, dict[str, Any] | BaseException]]:
    """Job and record, or the error that it ended with, as they come."""
    if not workers:
        for job, config, folder in trainings:
            if time.monotonic() < deadline:
                yield job, run(job, config, folder)
        return
    if time.monotonic() >= deadline:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(run, *one): one[0] for one in trainings}
        for done in as_completed(waiting):
            if time.monotonic() > deadline:
                for one in waiting:
                    one.cancel()
            if not done.cancelled():
                yield waiting[done], done.exception() or done.result()


def run(job: Job, config: Config, folder: Path) -> dict[str, Any]:
    """Trains and tests one network: mAP, rank-1 and mINP of each condition."""
    torch.set_num_threads(1)
    config = configured(job, config)
    data = read_dataset(folder)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        train(config, data, Path(out), quiet=True)
        network = load_network(Path(out))
    tests = {
        name: {
            "mAP": one.mean_average_precision,
            "rank-1": one.rank(1),
            "mINP": one.mean_inverse_negative_penalty,
        }
        for name, one in score_all(network, config, data).items()
    }
    return {
        "tests": tests,
        "positions": describe_positions(network.vit, config.encoding),
        "seconds": round(time.process_time() - started, 1),
    }


def configured(job: Job, config: Config) -> Config:
    """The training of a job."""
    encoding, options = CONTENDERS[job.encoding]
    own = {"encoding": encoding, "encoding_args": json.dumps(options)}
    return replace(config, **own, pool=POOLS[job.pool], seed=job.seed)


def _vit(config: Config) -> Any:
    return build_network(replace(config, encoding="none"), 2, load_pretrained=False).vit


if __name__ == "__main__":
    command(main, "the same command goes on with the trainings that are missing")
