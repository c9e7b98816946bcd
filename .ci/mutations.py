"""Changes of the code in one place, made by Cosmic Ray and drawn at random: see mutants.py."""

from __future__ import annotations

import ast
import difflib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = (
    *("functional", "terms", "pairs.py", "layout.py", "intercept.py"),
    *("encodings", "attention", "patching"),
)
WITHOUT = "attention/kernels"  # which has proofs of its own, on other machines


@dataclass(frozen=True)
class Place:
    """Where something can be changed, in one of some ways.

    Attributes:
        path: of the file, from the root of the repository.
        line: first line of what changes.
        span: start and end as lines and columns.
        ways: name of an operator, and which of its occurrences in the file this is.
    """

    path: str
    line: int
    span: tuple[tuple[int, int], tuple[int, int]]
    ways: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Mutant:
    """A file with one change."""

    path: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Names it also when lines above it come or go."""
        return f"{self.path}: {self.before} -> {self.after}"


def draw(number: int, seed: int) -> list[Mutant]:
    """Places are drawn, and of each place one way to change it."""
    rng = random.Random(seed)
    places = [place for path in sources() for place in places_in(path)]
    rng.shuffle(places)
    mutants: dict[str, Mutant] = {}
    for place in places:
        mutant = mutate(place, rng.choice(place.ways))
        if mutant is not None:
            mutants.setdefault(mutant.key, mutant)
        if len(mutants) == number:
            break
    return list(mutants.values())


def sources() -> Iterator[Path]:
    """The files that are looked at."""
    for part in PARTS:
        path = ROOT / "posenc" / part
        for each in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if WITHOUT not in each.as_posix():
                yield each


def places_in(path: Path) -> list[Place]:
    """All of a file."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(path.read_text())))
    ways: dict[tuple[Any, Any], list[tuple[str, int]]] = defaultdict(list)
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments():  # those want to be told what to change
            continue
        spans = [span for node in nodes for span in operator().mutation_positions(node)]
        for occurrence, span in enumerate(spans):
            ways[span].append((name, occurrence))
    where = str(path.relative_to(ROOT))
    return [Place(where, span[0][0], span, tuple(some)) for span, some in sorted(ways.items())]


def mutate(place: Place, way: tuple[str, int]) -> Mutant | None:
    """None where nothing that runs is changed, as in annotations, or where it is no Python."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    name, occurrence = way
    before = (ROOT / place.path).read_text()
    after = mutate_code(before, plugins.get_operator(name)(), occurrence)
    try:
        if after is None or what_runs(after) == what_runs(before):
            return None
    except SyntaxError:  # a bare `*` among the arguments is taken for a product
        return None
    texts = _difference(before.splitlines(), after.splitlines())
    return Mutant(place.path, place.line, name.split("/")[-1], *texts, after)


def _difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines that differ, each side in one."""
    sides: tuple[list[str], list[str]] = [], []
    for tag, *spans in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if tag != "equal":
            sides[0].extend(before[slice(*spans[:2])])
            sides[1].extend(after[slice(*spans[2:])])
    return " ".join(map(str.strip, sides[0])), " ".join(map(str.strip, sides[1]))


def what_runs(source: str) -> str:
    """The code without annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            if getattr(node, part, None) is not None:
                setattr(node, part, ast.Constant(None))
    return ast.dump(tree)
