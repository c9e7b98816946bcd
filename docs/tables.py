"""Puts the tables of the encodings and of benchmarks/results/ into the README and docs/.

python docs/tables.py   # `make tables`, after a new encoding, or a benchmark that was run again

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`. NAME is a report in
benchmarks/results/, or one of `MADE`.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    ROOT / page
    for page in (
        "README.md",
        "docs/start.md",
        "docs/encodings_table.md",
        "docs/performance.md",
        "docs/kernels.md",
        "docs/tests.md",
    )
)
TESTS = ROOT / "tests"
# The table of a report is the benchmark's own; the sources of tests say what they compare with.
sys.path[:0] = [str(ROOT / "benchmarks"), str(TESTS / "support")]

import torch  # noqa: E402
from golden_loads import loaded  # noqa: E402
from readme_facts import instead_table, people_line, ratio_lines, which_table  # noqa: E402
from reports import load, model_ratio, ratio  # noqa: E402
from survivors import mutants_table  # noqa: E402

import posenc  # noqa: E402
from posenc.bench.cases import ENCODINGS, SHAPES  # noqa: E402
from posenc.bench.table import markdown  # noqa: E402
from posenc.cli.listing import Description, describe  # noqa: E402
from posenc.encodings.base import PLACEMENTS, Encoding  # noqa: E402
from posenc.terms import Term  # noqa: E402

ADDRESS = re.search(r'^Source = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
OFFICIAL = {  # the row of the published code that does the same
    "irpe": "peer: official iRPE k",
    "irpe mode=bias": "peer: official iRPE bias k",
    "irpe on=qkv": "peer: official iRPE qkv",
    "irpe method=cross": "peer: official iRPE cross k",
    "irpe method=cross on=qkv": "peer: official iRPE cross qkv",
}
TESTED_WITH = {"cosine": "cpb"}  # reference outputs have both, and one test compares them
CHECKED = (
    f"Checked against outputs of published code ([tests/golden]({ADDRESS}/tree/main/tests/golden)),"
    "\nor loops over tokens, written from the formula."
)
SIZES = """\
Numbers are the parameters in one place of a ViT-S/16 at 224 pixels. Costs, from the cheapest:
*tokens*, once outside attention; *scale*, *rotation* and *low rank*, a little beside plain
attention; *table*, one read a pair, remembered in evaluation; *query table* and *key table*, a
product for each token, then one read a pair; *matrix*, a number for each pair; *matrix rotation*, a
product for each token, and in training the gradient of matrix exponentials; *value table*, sums of
attention by bucket; *second attention*, as it says. *ViT-S/16* is the time of the whole model with
the encoding over that without, in inference and in training: medians in float32 on one thread of a
shared CPU, where 0.03 is noise (`python benchmarks/bench_model.py`, also with `--backward`)."""
LAYOUT = posenc.TokenLayout(14, 14, prefix=1)
COSTS = {
    posenc.DenseBias: "matrix",
    posenc.LowRankBias: "low rank",
    posenc.ValueLookup: "value table",
    posenc.Rotation: "rotation",
    posenc.MatrixRotation: "matrix rotation",
    posenc.ContentScale: "scale",
    posenc.Mixture: "second attention",
}
PLACES = ("inside attention", *PLACEMENTS.values())
COLUMNS = (
    *("name", "acts", "what it is", "starts"),
    *("parameters", "costs as", "ViT-S/16", "checked against", "paper"),
)


@dataclass(frozen=True)
class Target:
    """A goal: the ratio of a case at a shape."""

    case: str
    report: str
    shape: str
    at_most: float


def main() -> None:
    """Writes the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


def filled(page: str) -> str:
    """The page with every table as the reports have it now."""
    pattern = r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: m[1] + table(m[2]) + "\n" + m[3], page, flags=re.DOTALL)


def table(name: str) -> str:
    """Of a report, and where it comes from."""
    if name in MADE:
        return MADE[name]()
    if name.startswith("kernels"):
        return kernels_table(load(name))
    report = load(name)
    origin = "`{command}`, {device}, {threads} thread, torch {torch}, commit {commit}".format(
        **report
    )
    return f"{markdown(report['ratios_to_plain_sdpa'])}\n\n{origin}"


def short_encodings_table() -> str:
    """The README's: what is registered, in a line each."""
    rows = [["name", "what it is", "paper"], ["---"] * 3]
    rows += [[f"`{each.name}`", summary_of(each), paper_of(each)] for each in described()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def described() -> list[Description]:
    """What is registered, by where it acts."""
    encodings = [describe(name) for name in built_in()]
    return sorted(encodings, key=lambda encoding: (PLACES.index(encoding.acts), encoding.name))


def summary_of(encoding: Description) -> str:
    """Its first sentence, as a cell."""
    return encoding.summary.rstrip(".").replace("|", r"\|")


def paper_of(encoding: Description) -> str:
    """Its link."""
    return "ours" if encoding.paper is None else "[{}]({})".format(*encoding.paper)


def encodings_table() -> str:
    """What is registered, from the classes and their tests."""
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    rows += [encoding_row(encoding) for encoding in described()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{SIZES}\n{CHECKED}"


def encoding_row(encoding: Description) -> list[str]:
    """Its cells."""
    summary, paper = summary_of(encoding), paper_of(encoding)
    module = at_its_usual_size(encoding.name)
    numbers = f"{sum(parameter.numel() for parameter in module.parameters()):,}"
    costs, time = costs_as(module), " and ".join(model_times(encoding.name)) or "-"
    first = [f"`{encoding.name}`", encoding.acts, summary, encoding.starts]
    return [*first, numbers, costs, time, checked_against(encoding.name), paper]


def model_times(name: str) -> list[str]:
    """Of a ViT-S/16 with it over one without, in inference and in training, as measured."""
    ratios = (model_ratio(report, name) for report in MODELS)
    return [f"{ratio:.2f}" for ratio in ratios if ratio is not None]


def at_its_usual_size(name: str) -> Encoding:
    """As it stands once in a ViT-S/16 at 224 pixels."""
    is_hidden = getattr(posenc.registry.encoding_class(name), "placement", None) == "mlp_hidden"
    sizes = {"num_heads": 6, "head_dim": 64, "embed_dim": 1536 if is_hidden else 384}
    return posenc.create_encoding(name, layout=LAYOUT, **sizes, block=0, num_blocks=12)


def costs_as(encoding: Encoding) -> str:
    """What a backend has to compute for it, in words."""
    if isinstance(encoding, posenc.TokenEncoding):
        return "tokens"
    with torch.no_grad():
        q, k = torch.randn(2, 1, 6, LAYOUT.num_tokens, 64)
        terms = encoding(q, k, LAYOUT)
    return ", ".join(dict.fromkeys(map(cost_of, terms))) or "nothing"


def cost_of(term: Term) -> str:
    """Of one term."""
    if isinstance(term, posenc.LookupBias):
        return "table" if term.read_by == "one" else f"{term.read_by} table"
    return COSTS[type(term)]


def built_in() -> list[str]:
    """Names of the encodings that posenc has, whatever else is registered in this process."""
    package = posenc.AttentionEncoding.__module__.rpartition(".")[0]
    classes = {name: posenc.registry.encoding_class(name) for name in posenc.list_encodings()}
    return [name for name, cls in classes.items() if cls.__module__ == f"{package}.{name}"]


def checked_against(name: str) -> str:
    """Outputs of published code where its test loads some, else loops over pairs of tokens."""
    source = (TESTS / "encodings" / f"test_{TESTED_WITH.get(name, name)}.py").read_text()
    manifest = json.loads((TESTS / "golden" / "manifest.json").read_text())
    names = [case["name"] for case in manifest["cases"]]
    return "published code" if loaded(source, names) else "loops"


# Instructions per score of the main loop in bfloat16, heads 64 wide, 32x32 patches and CLS, on
# sm_90: at most so many in forward, and by queries and by keys in backward.
COUNTS = {
    "plain": (9, 10, 13),
    "static": (12, 14, 17),
    "contextual": (16, 24, 22),
    "low rank": (14, 18, 24),
    "value": (40, None, None),
}


def kernels_table(report: dict) -> str:
    """What the compiler reports for each kernel."""
    header = ["terms", "kernel", "tile", "warps", "instructions", "goal", "bound", "to plain"]
    rows = [[*header, "registers", "spilled", "shared", "warps at a time", "serialized"]]
    rows.append(["---"] * len(rows[0]))
    counts = COUNTS if report["capability"] == 90 else {}
    # The first of each: plain kernels of other tiles come after, to compare with.
    shown = {(row["kind"], row["kernel"]): row for row in reversed(report["kernels"])}
    walks = [row for row in reversed(shown.values()) if "bound" in row]
    rows += [kernel_row(row, counts) for row in walks]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n`{report['command']}`, Triton {report['triton']}"


def kernel_row(row: dict, goals: dict) -> list[str]:
    """Its cells; a number above its goal is bold."""
    count = f"{row['instructions_per_score']:.1f}"
    goal = count_goal(row, goals)
    if goal is not None and row["instructions_per_score"] > goal:
        count = f"**{count}**"
    ratio = row.get("bound_to_plain")
    return [
        *(row["kind"], f"`{row['kernel']}`", row["tile"], str(row["warps"])),
        *(count, "-" if goal is None else str(goal), f"{row['bound']:.3f}"),
        "-" if ratio is None else f"{ratio:.2f}",
        *(str(row["registers"]), f"{row['spilled']} bytes", f"{row['shared'] / 1024:.0f} KiB"),
        *(str(row["resident_warps"]), "yes" if row["serialized"] else "-"),
    ]


def count_goal(row: dict, goals: dict) -> int | None:
    """Where there is one."""
    kernels = ("forward", "query_gradients", "key_gradients")
    if row["kernel"] not in kernels:
        return None
    return goals.get(row["kind"], (None,) * 3)[kernels.index(row["kernel"])]


TARGETS = [
    *(
        Target(case, report, shape, 1.3 if shape == "vit-s-224" else 1.2)
        for case in ("quadratic", "human_part")
        for report in ("attention_cpu.json", "attention_cpu_training.json")
        for shape in ("vit-s-224", "vit-b-384", "1024")
    ),
    *(
        Target(case, report, shape, at_most)
        for case in ("swin", "irpe mode=bias")
        for report, shape, at_most in (
            ("attention_cpu.json", "vit-s-224", 1.12),
            ("attention_cpu.json", "vit-b-384", 1.12),
            ("attention_cpu.json", "1024", 1.12),
            ("attention_cpu_training.json", "vit-s-224", 1.2),
            ("attention_cpu_training.json", "vit-b-384", 1.5),
            ("attention_cpu_training.json", "1024", 1.8),
        )
    ),
    Target("irpe", "attention_cpu.json", "vit-s-224", 1.45),
    Target("irpe", "attention_cpu.json", "vit-b-384", 1.45),
    Target("irpe", "attention_cpu.json", "1024", 1.45),
    Target("irpe", "attention_cpu_training.json", "vit-s-224", 1.4),
    Target("irpe", "attention_cpu_training.json", "1024", 1.5),
    Target("irpe on=qkv", "attention_cpu.json", "vit-s-224", 2.7),
    Target("irpe on=qkv", "attention_cpu.json", "vit-b-384", 4.1),
    *(
        Target("irpe method=cross on=qkv", "attention_cpu.json", shape, 4.0)
        for shape in ("vit-s-224", "vit-b-384", "1024")
    ),
]


def targets_table() -> str:
    """Goal, what was measured, and the published code in the same run."""
    rows = [["encoding", "pass", "tokens", "goal", "measured", "official"], ["---"] * 6]
    for target in TARGETS:
        kind = "training" if "training" in target.report else "forward"
        measured = ratio(target.report, target.case, target.shape)
        official = ratio(target.report, OFFICIAL.get(target.case), target.shape)
        text = f"{measured:.2f}" if measured <= target.at_most else f"**{measured:.2f}**"
        theirs = "-" if official is None else f"{official:.2f}"
        tokens, goal = str(SHAPES[target.shape].layout.num_tokens), f"{target.at_most:.2f}"
        rows.append([f"`{target.case}`", kind, tokens, goal, text, theirs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


MODELS = ("model_cpu.json", "model_cpu_training.json")


def overview_table() -> str:
    """Each encoding's attention, and a whole model with it."""
    shapes = ("vit-s-224", "vit-b-384", "1024")
    passes = {"forward": "attention_cpu.json", "training": "attention_cpu_training.json"}
    grids = [f"{SHAPES[shape].height}x{SHAPES[shape].width}" for shape in shapes]
    header = ["ratio to plain", *(f"{kind} {grid}" for kind in passes for grid in grids)]
    header += ["ViT-S/16 forward", "ViT-S/16 training"]
    rows = [header, ["---"] * len(header)]
    for case in ENCODINGS:
        cells = [ratio(report, case, shape) for report in passes.values() for shape in shapes]
        cells += [model_ratio(report, case) for report in MODELS]
        rows.append([f"`{case}`", *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


MADE = {
    "targets": targets_table,
    "overview": overview_table,
    "encodings": encodings_table,
    "encodings-in-short": short_encodings_table,
    "which": which_table,
    "people": people_line,
    "ratios": ratio_lines,
    "instead": instead_table,
    "mutants": mutants_table,
}


if __name__ == "__main__":
    main()
