"""Where and with what a trial ran: package versions, hardware, code revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mlrc_lightning.files import PACKAGE_FOLDER

PACKAGES = (
    "mlrc-lightning", "torch", "torchvision", "pytorch-lightning", "pytorch-metric-learning", "timm", "ax-platform",
    "botorch", "hydra-core", "omegaconf", "numpy", "scikit-learn", "pillow", "matplotlib", "faiss-cpu", "faiss-gpu",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Returns a JSON-able description."""
    torch = sys.modules.get("torch")
    return {**_machine(), "num_threads": None if torch is None else torch.get_num_threads()}


@cache
def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "gpus": _gpus(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "code": _code_revision(PACKAGE_FOLDER),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    # asked only of a process that has torch already: a table command must not import it
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _code_revision(folder: Path) -> dict[str, Any]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "has_changes": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "has_changes": None}
