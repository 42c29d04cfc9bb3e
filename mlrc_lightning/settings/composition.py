"""What a command line of `train.py` would be about: protocol, setting, budgets.

It is composed once and then remembered.

Composing takes longer than rendering a table. What it gives depends on the YAML files, the overrides and this package
alone, so it is kept in a file until one of them changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlrc_lightning.errors import ConfigError, MlrcError
from mlrc_lightning.files import config_folder, write_json
from mlrc_lightning.reading import read, suggestion
from mlrc_lightning.reference import PAPER_SETTINGS

_MEMORY = Path("tables") / ".compositions.json"
_OF_THE_LAUNCHER = ("hydra.launcher.", "hydra/launcher=")


@dataclass(frozen=True)
class Composition:
    """What tables and studies need of a configuration.

    Attributes:
        setting: Dataset and batch size, as in the folders under `outputs`.
        protocol: Whose runs count. All others are only named.
        embedding_size: E of each model.
        num_folds: Models of a run.
        num_runs: Runs wanted.
        max_trials: Trials wanted of a search.
    """

    setting: str
    protocol: str
    embedding_size: int
    num_folds: int
    num_runs: int
    max_trials: int

    @property
    def paper_setting(self) -> str | None:
        """Name of the setting in the paper's tables, None where these do not have it."""
        return self.setting if self.setting in PAPER_SETTINGS else None


def overrides_of(name: str) -> list[str]:
    """Returns the overrides that a table or study of this name begins with: an experiment, or a dataset.

    Raises:
        ConfigError: There is none of this name.
    """
    conf = config_folder()
    for group in ("experiment/mlrc", "experiment"):
        if (conf / group / f"{name}.yaml").exists():
            return [f"experiment={f'{group}/{name}'.partition('/')[2]}"]
    if (conf / "dataset" / f"{name}.yaml").exists():
        return [f"dataset={name}"]
    known = [path.stem for path in (*conf.glob("experiment/**/*.yaml"), *conf.glob("dataset/*.yaml"))]
    raise ConfigError(f"{name}: expected the name of an experiment or a dataset.{suggestion(name, set(known))}")


def compose(overrides: Sequence[str], outputs: Path) -> Composition:
    """Returns what the overrides come to.

    Args:
        overrides: As for `train.py`. How jobs are launched (`hydra.launcher.…`) changes nothing here, and is not read.
        outputs: Where the memory is kept, below `tables`.

    Raises:
        MlrcError: The configuration is not acceptable, as `train.py` would say it.
    """
    overrides = [word for word in overrides if not word.lstrip("+~").startswith(_OF_THE_LAUNCHER)]
    memory = outputs / _MEMORY
    key = _key(overrides)
    known = {}
    if memory.exists():
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            return read(Composition, known[key])
        except (ValueError, KeyError, MlrcError):
            known = known if isinstance(known, dict) else {}
    composed = _compose(overrides)
    memory.parent.mkdir(parents=True, exist_ok=True)
    of_this_version = {k: v for k, v in known.items() if k.partition(" ")[0] == key.partition(" ")[0]}
    write_json(memory, {**of_this_version, key: dataclasses.asdict(composed)})
    return composed


def _compose(overrides: Sequence[str]) -> Composition:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from mlrc_lightning.settings.resolvers import register_resolvers

    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = hydra_compose("train", list(overrides))
    return Composition(
        setting=cfg.setting,
        protocol=cfg.protocol,
        embedding_size=cfg.embedder.embedding_size,
        num_folds=cfg.split.num_folds,
        num_runs=cfg.num_runs,
        max_trials=cfg.max_trials,
    )


def _key(overrides: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in (*sorted(config_folder().rglob("*.yaml")), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return " ".join([digest.hexdigest(), *overrides])
