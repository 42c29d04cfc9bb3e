"""Does the proxy with a frozen trunk rank settings as training the trunk does? Spearman's correlation over settings.

    python examples/demo_frozen.py GROCERY data
    python benchmarks/frozen.py [--losses arcface triplet] [--draws 0] [--iterations 100] [--json FILE]

One hundred iterations are few (docs/losses.md): what is compared is both ways at the same early moment.
Every setting is trained twice on fold 0 of the Grocery photos at 128 px, with EfficientNet-Lite0: whole, for
`--iterations` at the protocol's learning rate, and as the proxy of `experiment=demo_frozen`. Both are scored by
validation MAP@R; no test image is opened. Settings: of each loss the paper's optimum for CUB200, and `--draws` random
points of its search space. Trials are `train.py`'s own, so that a repeated command does only what is missing.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from measuring import keep
from scipy.stats import spearmanr

from mlrc_lightning.settings.paper import search_space

ROOT = Path(__file__).parents[1]
LOSSES = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
PROXY = ["experiment=demo_frozen"]
WHOLE = [
    "experiment=demo_frozen", "trunk.frozen=false", "trunk.learning_rate=1e-6", "schedule.max_epochs=2",
    "trainer.channels_last=true",  # in the last digits another trial, in two thirds of the time
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=LOSSES)
    parser.add_argument("--draws", type=int, default=0, help="random settings of each loss")
    parser.add_argument("--iterations", type=int, default=100, help="of training the trunk too")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    common = ["stage=search", "fold=0", f"data_root={arguments.data_root}", "output_root=outputs/frozen_benchmark"]
    whole = [*WHOLE, f"schedule.iterations_per_epoch={math.ceil(arguments.iterations / 2)}"]
    figures: list[dict[str, Any]] = []
    for loss in arguments.losses:
        for number in range(1 + arguments.draws):
            setting = [f"loss={loss}", *(drawn(loss, number) if number else ["hyperparameters=paper"])]
            proxy, trained = (score([*mode, *setting, *common]) for mode in (PROXY, whole))
            figures.append({"setting": " ".join(setting), "proxy": proxy, "whole": trained})
            print(f"{figures[-1]['setting']:<110} | proxy {proxy:.4f} | whole {trained:.4f}", flush=True)
    if len(figures) > 2:
        found = spearmanr([f["proxy"] for f in figures], [f["whole"] for f in figures])
        print(
            f"Spearman's rank correlation over {len(figures)} settings: {found.statistic:.2f} (p = {found.pvalue:.3f})"
        )
    keep(figures, arguments.json)


def drawn(loss: str, number: int) -> list[str]:
    """Returns overrides for a random point of the loss's search space for CUB200, by its number."""
    text = (ROOT / "conf" / "loss" / f"{loss}.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    space = search_space(settings["paper_name"], "cub200", 32, settings["parameter_names"]) or settings["search_space"]
    stream = random.Random(f"{loss} {number}")
    return [f"{key}={_point(entry, stream)}" for key, entry in space.items()]


def _point(entry: dict[str, Any], stream: random.Random) -> Any:
    if entry["type"] == "choice":
        return stream.choice(entry["values"])
    low, high = entry["bounds"]
    if entry.get("log_scale"):
        value = math.exp(stream.uniform(math.log(low), math.log(high)))
    else:
        value = stream.uniform(low, high)
    return round(value) if isinstance(low, int) else value


def score(overrides: list[str]) -> float:
    """Returns validation MAP@R of one trial of `train.py`, 0 where training diverged."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Record: ")]
    if not lines:
        if "NonFiniteError" in done.stderr or "diverged" in done.stderr:
            return 0.0
        sys.exit(f"{' '.join(overrides)}: expected a record, found exit code {done.returncode}:\n{done.stderr[-2000:]}")
    record = json.loads((ROOT / lines[-1].removeprefix("Record: ")).read_text(encoding="utf-8"))
    return float(record["val"]["mean_average_precision_at_r"])


if __name__ == "__main__":
    main()
