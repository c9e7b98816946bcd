"""Does position that knows the body help? The same ViT and budget with each encoding.

    python examples/reid/experiment.py --out docs/reid           # 8x4 patches, on a CPU
    python examples/reid/experiment.py --out full --full         # 16x8 patches, for a GPU

Every training of a seed has the same people, the same first weights and the same batches; only the
encoding differs. Each network is then tested on crops as trained, on crops that are shifted down,
and on a taller grid. Writes experiment.json, experiment.md and experiment.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

try:
    from data.batches import photo_loader
    from data.market import Photo, Splits, read_dataset
    from findings.report import write_report
    from generate import Recipe, write
    from model.network import ReIDNetwork, set_size
    from options import Parser, RefusedError, command
    from people.wardrobes import WARDROBES
    from search.features import embed, score
    from tqdm import tqdm
    from training.checkpoints import load_network
    from training.config import Config
    from training.run import train
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

ENCODINGS = (
    "none",
    "learned",
    "peg",
    "irpe",
    "swin",
    "quadratic",
    "human_part",
    "learned+human_part",
    "irpe+human_part",
)
POOLS = {"CLS": "token", "mean": "avg"}
SHIFT = 1 / 8  # of the height
TALLER = 3 / 2  # times the height: 8x4 patches become 12x4, and 16x8 become 24x8
FULL = {
    "height": 128,
    "width": 64,
    "vit_args": '{"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, '
    '"pos_embed": "none", "weight_init": "moco"}',
}


@dataclass(frozen=True)
class Job:
    """One training."""

    encoding: str
    pool: str  # a key of POOLS
    seed: int


@dataclass(frozen=True)
class Kept:
    """What an interrupted experiment has finished: its numbers, then a record in each line."""

    path: Path
    numbers: dict[str, Any]

    def read(self) -> dict[Job, dict[str, Any]]:
        """The records; begins the file if there is none.

        Raises:
            ValueError: it was another experiment.
        """
        head = json.dumps(self.numbers)
        if not self.path.is_file():
            self.path.write_text(head + "\n")
        first, *lines = self.path.read_text().splitlines()
        if first != head:
            raise ValueError(
                f"{self.path} is left from an experiment with other numbers; remove it"
            )
        records = [json.loads(line) for line in lines]
        return {Job(*(one[key] for key in ("encoding", "pool", "seed"))): one for one in records}


def main() -> None:
    """Trains all, tests all, writes the report."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [Job(*job) for job in itertools.product(args.encodings, POOLS, range(args.seeds))]
    config = Config(
        **(FULL if args.full else {}),
        epochs=args.epochs,
        warmup_epochs=1,
        tracker="none",
        evaluate_every=args.epochs,
        checkpoint_every=args.epochs,
    )
    recipe = Recipe(train_people=args.train_people, wardrobe=args.wardrobe)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = [Path(folder) / f"data-{seed}" for seed in range(args.seeds)]
        for seed, path in enumerate(data):
            write(path, replace(recipe, seed=seed))
        numbers = {"config": asdict(config), "recipe": asdict(recipe)}
        kept = Kept(args.out / "experiment.partial.jsonl", numbers)
        results = run_all(jobs, config, data, args.workers, kept)
    report = {
        "command": " ".join(["python", "examples/reid/experiment.py", *sys.argv[1:]]),
        "config": asdict(config),
        "recipe": asdict(recipe),
        "commit": commit(),
        "versions": f"torch {torch.__version__}, timm {timm.__version__}",
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "results": results,
    }
    (args.out / "experiment.json").write_text(json.dumps(report, indent=1) + "\n")
    print(write_report(report, args.out))


def commit() -> str:
    """Of this code, where git knows it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--encodings", nargs="+", default=list(ENCODINGS), choices=ENCODINGS, help="those compared"
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each encoding")
    parser.add_argument("--full", action="store_true", help="16x8 patches, 6 layers, 40 epochs")
    parser.add_argument("--epochs", type=int, help="default 8, with --full 40")
    parser.add_argument(
        "--train-people", type=int, default=Recipe.train_people, help="people of each training"
    )
    parser.add_argument(
        "--wardrobe", default=Recipe.wardrobe, choices=sorted(WARDROBES), help="what people wear"
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    args.epochs = args.epochs or (40 if args.full else 8)
    return args


def run_all(
    jobs: list[Job], config: Config, data: list[Path], workers: int, kept: Kept
) -> list[dict[str, Any]]:
    """A record for each job, in their order.

    Finished ones are kept in a file: an interrupted experiment goes on where it was.

    Raises:
        RefusedError: some failed; the others are kept.
    """
    results = kept.read()
    failed = []
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, kept.path.open("a") as file:
        missing = [job for job in jobs if job not in results]
        waiting = {pool.submit(run, job, config, data[job.seed]): job for job in missing}
        for done in tqdm(as_completed(waiting), total=len(missing), unit="run", desc="experiment"):
            job = waiting[done]
            if (error := done.exception()) is not None:
                failed.append(f"{job}: {error!r}")
                continue
            results[job] = {**asdict(job), **done.result()}
            file.write(json.dumps(results[job]) + "\n")
            file.flush()
    if failed:
        raise RefusedError(f"{len(failed)} trainings failed, {kept.path} has the others: {failed}")
    kept.path.unlink()
    return [results[job] for job in jobs]


def run(job: Job, config: Config, folder: Path) -> dict[str, Any]:
    """Trains and tests one network: mAP and rank-1 by kind of test."""
    torch.set_num_threads(1)
    config = replace(config, encoding=job.encoding, pool=POOLS[job.pool], seed=job.seed)
    data = read_dataset(folder)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        train(config, data, Path(out), quiet=True)
        network = load_network(Path(out))
    seconds = time.process_time() - started
    scores = {name: test(network, config, data) for name, test in TESTS.items()}
    tests = {
        name: {"mAP": one.mean_average_precision, "rank-1": one.rank(1)}
        for name, one in scores.items()
    }
    return {"tests": tests, "seconds": round(seconds, 1)}


# Tests


def score_as_trained(network: ReIDNetwork, config: Config, data: Splits) -> Any:
    """The crops of the training."""
    return score(*(_embed(network, part, config.size) for part in (data.query, data.gallery)), data)


def score_shifted(network: ReIDNetwork, config: Config, data: Splits) -> Any:
    """Queries shifted down, as by another detector; the gallery as it is."""
    gallery = _embed(network, data.gallery, config.size)
    return score(_embed(network, data.query, config.size, shift=SHIFT), gallery, data)


def score_taller(network: ReIDNetwork, config: Config, data: Splits) -> Any:
    """Crops stretched to more rows of patches; the encodings follow."""
    size = round(config.height * TALLER), config.width
    set_size(network.vit, size)
    taller = [_embed(network, part, size) for part in (data.query, data.gallery)]
    set_size(network.vit, config.size)
    return score(*taller, data)


TESTS = {"as trained": score_as_trained, "shifted": score_shifted, "taller": score_taller}


def _embed(
    network: ReIDNetwork, photos: tuple[Photo, ...], size: tuple[int, int], shift: float = 0.0
) -> Tensor:
    batches = ((shifted(images, shift), at) for images, at in photo_loader(photos, size))
    return torch.cat(embed(network, batches)).cpu()


def shifted(images: Tensor, shift: float) -> Tensor:
    """Down by this share of the height; the uppermost row fills what becomes free."""
    rows = round(shift * images.shape[-2])
    if not rows:
        return images
    return torch.cat([images[..., :1, :].expand(-1, -1, rows, -1), images[..., :-rows, :]], dim=-2)


if __name__ == "__main__":
    command(main, "the same command goes on with the trainings that are missing")
