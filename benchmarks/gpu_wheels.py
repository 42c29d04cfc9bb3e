"""Collects the wheels that `gpu_check.py` needs on a machine without a network: what we depend on and it lacks.

    python benchmarks/gpu_wheels.py [FOLDER]        # make gpu-wheels: dist/gpu_wheels

The machine has `PRESENT` and what those need. Ax is left out, because the check searches nothing. The versions are
those installed here, which the tests ran with; a package without a wheel is built. The folder is replaced as a whole.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
OURS = "mlrc-lightning"
PRESENT = ("torch", "torchvision", "pytorch-lightning", "timm", "scikit-learn", "safetensors", "matplotlib")
UNUSED = ("ax-platform",)
PYTHON, PLATFORMS = "3.12", ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MAX_MEGABYTES = 50


def closure(names: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    """Returns packages and all that they need on the target machine.

    Args:
        names: Packages that are installed here.
        without: Packages that are not followed.
    """
    left_out, found, waiting = set(without), set[str](), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or name in left_out:
            continue
        found.add(name)
        try:
            requirements = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # of another version of Python or another device
        target = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate(target)]
    return found


def needed() -> list[str]:
    """Returns the packages that the machine lacks, without ours."""
    return sorted(closure([OURS], without=closure(PRESENT) | set(UNUSED)) - {OURS})


def collect(folder: Path) -> list[Path]:
    """Writes a wheel of each package, and of ours, to a folder. Returns the files."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    for name in needed():
        pinned = f"{name}=={version(name)}"
        download = subprocess.run(
            [*pip, "download", "--no-deps", *target, "--dest", str(folder), pinned], stderr=subprocess.PIPE
        )
        if download.returncode != 0:
            print(f"{pinned} has no wheel for Python {PYTHON} on x86-64 and is built.", flush=True)
            subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), pinned], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    return sorted(folder.iterdir())


def problem(files: list[Path]) -> str | None:
    """Returns what is wrong with a folder of wheels: one that another machine cannot install, or too many bytes."""
    tag = re.compile(r"(py3|py2\.py3)-none-any|cp312-(cp312|abi3|none)-manylinux.*x86_64")
    for file in files:
        tags = {str(found) for found in parse_wheel_filename(file.name)[3]}
        if not any(tag.fullmatch(found) for found in tags):
            return f"{file.name}: expected a wheel for Python {PYTHON} on x86-64, or for any machine"
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    if megabytes >= MAX_MEGABYTES:
        return f"expected less than {MAX_MEGABYTES} MB of wheels, found {megabytes:.0f} MB"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist" / "gpu_wheels")
    folder = parser.parse_args().folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        made = Path(name) / "wheels"
        made.mkdir()
        files = collect(made)
        reason = problem(files)
        if reason is not None:
            print(reason, file=sys.stderr)
            return 1
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size / 1e3:8,.0f} kB  {file.name}")
    print(f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
