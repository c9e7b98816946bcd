"""Builds what is published, and tries both files where only they are installed.

python .ci/dist.py   # `make dist`

Writes the wheel and the source distribution to dist/. Each is installed into an empty virtual
environment, with its command and its metadata, and passes tests/smoke.py there, outside the
repository. The source distribution has every file of the repository, and its own tests run from it.

What posenc needs is not downloaded again: the environments see the packages beside this Python,
after their own. That a download of them fits is what `make smoke-lowest` tries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
MADE = {"PKG-INFO", "setup.cfg"}  # by the build, which adds to setup.cfg
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTHONPATH", None)
TRIAL = """\
import importlib.metadata, pathlib, posenc, runpy, sys
home = pathlib.Path(posenc.__file__).parent
assert home.is_relative_to(sys.prefix), home
assert (home / "py.typed").is_file() and (home / "explorer" / "page.html").is_file()
assert not (home / "explorer" / "front").exists() and not (home.parent / "tests").exists()
assert importlib.metadata.version("posenc") == posenc.__version__
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def main() -> None:
    """Builds, compares, installs, tries."""
    wheel, source = build()
    compare_names(source)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        list(pool.map(tried, (wheel, source), (Path(folder, "wheel"), Path(folder, "source"))))
        run_its_tests(source, Path(folder))
    print(f"{wheel.name} and {source.name} are complete, and work where only they are installed")


def build() -> tuple[Path, Path]:
    """The wheel, which is built from the source distribution, and that."""
    for leftover in (DIST, ROOT / "build", ROOT / "posenc.egg-info"):  # these would be packed
        shutil.rmtree(leftover, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, quiet=True)
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return wheel, source


def compare_names(source: Path) -> None:
    """The source distribution has what the repository has, and nothing else."""
    listed = "git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"
    names = run(*listed, quiet=True).split("\0")
    here = {name for name in names if name and (ROOT / name).exists()}
    with tarfile.open(source) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    packed = {name.partition("/")[2] for name in files}
    packed = {name for name in packed if not name.startswith("posenc.egg-info/")}
    missing, unknown = sorted(here - packed), sorted(packed - here - MADE)
    if missing or unknown:
        raise SystemExit(
            f"{source.name} lacks {missing} and has {unknown}, which the repository has not: "
            "name them in MANIFEST.in"
        )


def tried(package: Path, folder: Path) -> None:
    """In an environment of its own, from a folder without posenc."""
    python = environment(folder)
    pip = sys.executable, "-m", "pip", "--python", python, "install", "--quiet"
    run(*pip, "--no-deps", "--ignore-installed", "--no-build-isolation", package, quiet=True)
    run(python.with_name("posenc"), "list", cwd=folder, quiet=True)
    smoke = ROOT / "tests" / "smoke.py"
    run(python, "-W", "error", "-c", TRIAL, smoke, cwd=folder, quiet=True)


def environment(folder: Path) -> Path:
    """Its Python: without packages, but for those that are beside the Python that runs this."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", quiet=True)
    Path(site.strip(), "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run_its_tests(source: Path, folder: Path) -> None:
    """Those of a small file, from the unpacked source distribution."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "pytest", "tests/test_registry.py", cwd=unpacked)


def run(*command: str | Path, cwd: Path = ROOT, quiet: bool = False) -> str:
    """What it prints; a failure ends this program, with all that was printed."""
    result = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    if not quiet:
        print(result.stdout, end="", flush=True)
    return result.stdout


if __name__ == "__main__":
    main()
