"""Scores a trained network: mAP, mINP, CMC, and how each query fared.

    python examples/reid/evaluate.py runs/market --data Market-1501-v15.09.15
    python examples/reid/evaluate.py runs/market --data DukeMTMC-reID --kind dukemtmc --rerank

The data may be others than those of the training, with crops of any size and other people; query
and gallery are enough. Writes scores.json, cmc.csv, cmc.png and queries.csv.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import matplotlib
    from data.market import Splits, read_dataset
    from findings.curves import draw_cmc
    from options import Parser, add_data, add_run, command
    from search import reranking
    from search.distances import METRICS
    from search.features import check_has_answers, embed_photos, summarize
    from search.labels import Labels
    from search.retrieval import Scores, score_distances, score_features
    from training.checkpoints import load_network
    from training.config import load_config
    from training.photos import saw_these
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

CAMERAS = "auto", "trained", "unknown"
SHOWN = 1, 2, 3, 5, 10, 20, 50  # ranks of the table


def main() -> None:
    """Reads the options, scores, writes, prints."""
    parser = Parser(__doc__)
    add_run(parser)
    add_data(parser)
    parser.add_argument("--rerank", action="store_true", help="by k-reciprocal neighbors")
    parser.add_argument("--metric", default="cosine", choices=METRICS, help="of the features")
    parser.add_argument(
        "--flip", action="store_true", help="mean features of each photo and its mirror image"
    )
    parser.add_argument(
        "--cameras",
        default="auto",
        choices=CAMERAS,
        help="with side information: whether they are those of the training; auto looks for its "
        "photos in the data",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("--out", type=Path, help="folder of the files, instead of RUN/evaluation")
    args = parser.parse_args()
    data = read_dataset(args.data, args.kind, needs_train=False)
    options = {"metric": args.metric, "rerank": args.rerank, "flip": args.flip}
    if load_config(args.run).sie != "none":
        options["cameras"] = which_cameras(args.run, data, args.cameras)
    scores = evaluate(args.run, data, **options)
    report = {"run": str(args.run), "data": str(args.data), **options, **summarize(scores)}
    out = args.out or args.run / "evaluation"
    write(scores, data, report, out)
    print(json.dumps(report) if args.json else "\n".join([*table(scores, report), f"more: {out}"]))


def which_cameras(run: Path, data: Splits, asked: str = "auto") -> str:
    """`trained` or `unknown`: other data number other cameras in the same way.

    Raises:
        ValueError: nothing tells.
    """
    if asked != "auto":
        return asked
    if not data.train:
        raise ValueError(
            f"{run} was told which camera took a photo, and without the photos to train on nothing "
            "tells whether these cameras are the same: pass --cameras trained or unknown"
        )
    return "trained" if saw_these(run, data.train) else "unknown"


def evaluate(
    run: Path,
    data: Splits,
    *,
    metric: str = "cosine",
    rerank: bool = False,
    flip: bool = False,
    cameras: str = "trained",
) -> Scores:
    """Of a finished training, on query and gallery of any data.

    `cameras` matters where the training had side information, and is by `which_cameras`.

    Raises:
        FileNotFoundError: the training is not finished, or not there.
        ValueError: no query has a photo of its person in the gallery, or too few are re-ranked.
    """
    check_has_answers(data)
    size, network = load_config(run).size, load_network(run)
    how = {"flip": flip, "are_cameras_known": cameras == "trained"}
    features = [embed_photos(network, part, size, **how) for part in (data.query, data.gallery)]
    labels = Labels.of(data.query, data.gallery)
    if rerank:
        return score_distances(reranking.rerank(*features, metric=metric), labels)
    return score_features(*features, labels, metric=metric)


def write(scores: Scores, data: Splits, report: dict[str, Any], out: Path) -> None:
    """The four files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    curve = [(rank, float(part)) for rank, part in enumerate(scores.cmc, start=1)]
    _write_table(out / "cmc.csv", [("rank", "found"), *curve])
    _write_table(out / "queries.csv", by_query(scores, data))
    matplotlib.use("agg")
    figure = draw_cmc(scores, Path(report["data"]).name)
    figure.savefig(out / "cmc.png", dpi=110)
    matplotlib.pyplot.close(figure)


def by_query(scores: Scores, data: Splits) -> Iterator[tuple[Any, ...]]:
    """A heading, then a row for each query; without scores where nobody could be found."""
    yield "photo", "person", "camera", "AP", "INP", "first match"
    columns = scores.average_precision, scores.inverse_negative_penalty, scores.first_match
    found = iter(zip(*(column.tolist() for column in columns), strict=True))
    for photo, is_valid in zip(data.query, scores.is_valid.tolist(), strict=True):
        row = next(found) if is_valid else ("", "", "")
        yield photo.path.name, photo.person, photo.camera, *row


def table(scores: Scores, report: dict[str, Any]) -> list[str]:
    """Lines for the terminal, in percent."""
    ranks = [rank for rank in SHOWN if rank <= len(scores.cmc)]
    return [
        f"mAP {100 * report['mAP']:.1f}, mINP {100 * report['mINP']:.1f}, "
        f"{report['queries']} of {len(scores.is_valid)} queries have a match",
        "rank " + "".join(f"{rank:7}" for rank in ranks),
        "CMC  " + "".join(f"{100 * scores.rank(rank):7.1f}" for rank in ranks),
    ]


def _write_table(path: Path, rows: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    command(main)
