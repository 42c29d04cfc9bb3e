"""Rosenbrock's banana function; see conf/config.yaml for the command."""

import logging

import hydra
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def banana(cfg: DictConfig) -> float:
    x, y = cfg.banana.x, cfg.banana.y
    z = (cfg.banana.a - x) ** 2 + cfg.banana.b * (y - x**2) ** 2
    log.info("banana(x=%s, y=%s) = %s", x, y, z)
    return float(z)


if __name__ == "__main__":
    banana()
