"""From composed configuration nodes to plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrc_lightning.errors import ConfigError, MlrcError


def error_of_a_resolver(error: BaseException | None) -> MlrcError | None:
    """Returns what one of our resolvers raised: OmegaConf wraps it, once for each interpolation around it."""
    while error is not None and not isinstance(error, MlrcError):
        error = error.__cause__ or error.__context__
    return error


def _resolved(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    keys = list(keys)
    try:
        missing = _first_missing(cfg, keys)
        if missing is not None:
            raise ConfigError(f"{missing}: expected a value, found none. Give one on the command line: {missing}=…")
        values = {key: cfg[key] for key in keys}
        return {
            key: OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
            for key, value in values.items()
        }
    except OmegaConfBaseException as error:
        own = error_of_a_resolver(error)
        if own is None:
            raise
        raise own from None


def _first_missing(node: Container, keys: Iterable[Any], path: str = "") -> str | None:
    """Returns the dotted key of a `???`, where there is one."""
    for key in keys:
        name = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            return name
        if not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            missing = _first_missing(node[key], list(node[key]), name)
            if missing is not None:
                return missing
    return None
