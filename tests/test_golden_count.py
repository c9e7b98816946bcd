"""Every case of the public set of reference outputs is exercised, or left out for a reason.

`golden/manifest.json` describes the cases that tests exercise; `golden/not_exercised.json` names
all cases of the set, and by pattern those that no test exercises.
"""

import hashlib
import json
from collections import Counter
from fnmatch import fnmatchcase

import golden_loads
import numpy as np
import pytest
from golden_cases import FOLDER

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
CASES = {case["name"]: case for case in MANIFEST["cases"]}
SET = json.loads((FOLDER / "not_exercised.json").read_text())
REASONS, PUBLIC = SET["not_exercised"], SET["public"]


def left_out(pattern):
    return [name for name in PUBLIC if fnmatchcase(name, pattern)]


def test_the_public_set_is_whole():
    assert len(PUBLIC) == len(set(PUBLIC)) == SET["num_cases"] == 231
    assert MANIFEST["num_cases"] == len(MANIFEST["cases"]) == len(CASES)
    assert set(CASES) - set(PUBLIC) == set(), 'name these in not_exercised.json, under "public"'


def test_every_public_case_is_exercised_or_left_out_for_a_reason():
    missing = set(PUBLIC) - set(CASES) - {n for pattern in REASONS for n in left_out(pattern)}
    assert not missing, (
        f"neither exercised nor left out: {sorted(missing)}. Exercise them (file and entry of "
        "manifest.json in tests/golden), or give the reason in tests/golden/not_exercised.json"
    )


@pytest.mark.parametrize("pattern", REASONS)
def test_what_is_left_out_is_not_exercised(pattern):
    names = left_out(pattern)
    assert names, f"{pattern!r} matches no public case: delete its line in not_exercised.json"
    exercised = sorted(set(names) & set(CASES))
    assert not exercised, (
        f"{exercised} are in manifest.json and left out by {pattern!r}: delete that line of "
        "tests/golden/not_exercised.json, or make the pattern narrower"
    )
    assert len(REASONS[pattern].split()) > 4, "say why, in a sentence"


def test_no_case_is_left_out_twice():
    counts = Counter(name for pattern in REASONS for name in left_out(pattern))
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_every_case_is_loaded_by_a_test():
    sources = [path.read_text() for path in FOLDER.parent.rglob("test_*.py")]
    unread = set(CASES).difference(*(golden_loads.loaded(source, CASES) for source in sources))
    assert not unread, (
        f"no test loads {sorted(unread)}; write the prefix as a literal: "
        'golden_cases.names("PREFIX"), golden_cases.case("NAME")'
    )


def test_the_files_are_those_of_the_manifest():
    files = {path.name: path.stat().st_size for path in FOLDER.glob("*.npz")}
    assert set(files) == {case["file"] for case in CASES.values()}
    assert sum(files.values()) == MANIFEST["total_bytes"]


@pytest.mark.parametrize("name", CASES)
def test_the_arrays_are_those_that_were_recorded(name):
    with np.load(FOLDER / CASES[name]["file"]) as stored:
        arrays = dict(stored)
    assert set(arrays) == set(CASES[name]["arrays"])
    assert sha256(arrays) == CASES[name]["sha256_arrays"]


def sha256(arrays):
    """Over sorted names: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        for part in (name, str(array.dtype), str(array.shape)):
            digest.update(part.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('golden_cases.names("a_b")', {"a_b_1", "a_b_2"}),
        ('names("a_b_")', {"a_b_1", "a_b_2"}),
        ("case(f'a_{x}_2')", {"a_b_2", "a_c_2"}),
        ('@parametrize("name", ["a_c_2"])\ndef test(): pass', {"a_c_2"}),
        ('FOLDER.glob("a_c_*.npz")', {"a_c_2"}),
        ('FOLDER.glob("*.npz"), listed("*"), "a_b", "a_b_1.npz"', set()),
        ('names(prefix), case(name), "of a_b_1"', set()),
        ('"""Loads names("a_b")."""  # case("a_c_2")', set()),
    ],
)
def test_what_a_source_loads(source, expected):
    assert golden_loads.loaded(source, ["a_b_1", "a_b_2", "a_c_2"]) == expected
