"""Experiments and models of powerful-benchmarker, the original program: run again, loaded, written in its form."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mlrc_lightning.errors import WeightsError
from mlrc_lightning.files import inside, write_bytes
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.names import RECORD_FILE
from mlrc_lightning.original.folder import NUM_FOLDS
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.training.checkpoint import PARTS
from mlrc_lightning.training.module import EmbeddingModule

_SPLIT_SCHEME = f"Test50_50_Partitions{NUM_FOLDS}_{{fold}}"
_DATA_PARALLEL = "module."
# MLP keeps its last layer under a second name as well, so that a state dict has it twice
_EMBEDDER_NAMES = {"net.0.weight": "weight", "net.0.bias": "bias"}
_EMBEDDER_ALIASES = {"last_linear.weight": "net.0.weight", "last_linear.bias": "net.0.bias"}


def load_original(trunk_path: Path, embedder_path: Path) -> EmbeddingModule:
    """Loads a model of the original, `trunk_best.pth` and `embedder_best.pth` of one of its folds.

    Returns:
        In eval mode: (B, 3, H, W) uint8 RGB → (B, E) of length 1; its trunk takes BGR, 0 to 255, by itself.

    Raises:
        WeightsError: A file is missing, unreadable, or not of BN-Inception with an embedder of one layer.

    Source: powerful-benchmarker, ModelFactory (the trunk is pretrainedmodels.bninception with an Identity as its
    last_linear) and MLP in architectures/misc_models.py; pytorch-metric-learning, save_model in
    utils/common_functions.py (a DataParallel is saved without its prefix, by older versions with it).
    """
    trunk = BNInception(pretrained=False)
    _load(trunk, _state_dict(trunk_path), trunk_path, "BN-Inception without its classifier")
    state = _state_dict(embedder_path)
    layer = {ours: state[theirs] for theirs, ours in _EMBEDDER_NAMES.items() if theirs in state}
    unknown = sorted(state.keys() - _EMBEDDER_NAMES.keys() - _EMBEDDER_ALIASES.keys())
    if len(layer) != len(_EMBEDDER_NAMES) or unknown or layer["weight"].ndim != 2:
        raise WeightsError(
            f"{embedder_path}: expected an embedder of one linear layer, {' and '.join(_EMBEDDER_NAMES)}, found"
            f" {', '.join(sorted(state)[:6]) or 'nothing'}. Embedders of several layers have no counterpart here."
        )
    for alias, name in _EMBEDDER_ALIASES.items():
        if alias in state and not torch.equal(state[alias], state[name]):
            raise WeightsError(
                f"{embedder_path}: expected {alias} to be {name} under its second name, found other values."
                " The original never writes such a file."
            )
    size, features = layer["weight"].shape
    if features != trunk.num_features:
        raise WeightsError(
            f"{embedder_path}: expected an embedder of {trunk.num_features} features, as {trunk_path.name} has, found"
            f" one of {features}. Are the two files of the same model?"
        )
    embedder = nn.Linear(features, size)
    _load(embedder, layer, embedder_path, f"a linear layer of {features} x {size}")
    return EmbeddingModule(trunk, embedder).eval()


def export_original(source: EmbeddingModule | Path, folder: Path) -> list[Path]:
    """Writes models as the original keeps them: `trunk_best.pth` and `embedder_best.pth`.

    Args:
        source: A module, or the folder of a finished trial that kept its models.
        folder: Gets the two files of a module; of a trial those of each fold, in
            `Test50_50_Partitions4_<fold>/saved_models/`.

    Returns:
        The files written.

    Raises:
        WeightsError: The trunk is not BN-Inception, or the trial has no models.
        RecordError: There is no record of a trial.
    """
    if isinstance(source, EmbeddingModule):
        if not isinstance(source.trunk, BNInception) or not isinstance(source.embedder, nn.Linear):
            raise WeightsError(
                "Expected BN-Inception and one linear layer, the only model with a form in the original, found"
                f" {type(source.trunk).__name__} and {type(source.embedder).__name__}."
            )
        return _write_model(source, folder)
    record = read_json(source / RECORD_FILE, TrialRecord)
    kept = [fold for fold in record.folds if fold.weights]
    if not kept:
        raise WeightsError(
            f"{source}: expected a trial that kept the models of its folds, found none in its record."
            " Run it with keep_models=true."
        )
    modules = {}
    for fold in kept:
        # read as weights alone: nothing that a record names is built
        files = {
            part: inside(source, fold.weights.get(part), f"folds of fold {fold.fold}, weights.{part}") for part in PARTS
        }
        states = {part: _safetensors(file) for part, file in files.items()}
        trunk = BNInception(pretrained=False)
        _load(trunk, states["trunk"], files["trunk"], "BN-Inception")
        weight = states["embedder"].get("weight", torch.empty(0, 0))
        embedder = nn.Linear(trunk.num_features, weight.shape[0])
        _load(embedder, states["embedder"], files["embedder"], "one linear layer")
        modules[fold.fold] = EmbeddingModule(trunk, embedder)
    written = []
    for number, module in modules.items():
        written += _write_model(module, folder / _SPLIT_SCHEME.format(fold=number) / "saved_models")
    return written


def _write_model(module: EmbeddingModule, folder: Path) -> list[Path]:
    embedder = {name: module.embedder.state_dict()[ours] for name, ours in _EMBEDDER_NAMES.items()}
    states = {
        "trunk": module.trunk.state_dict(),
        "embedder": {**embedder, **{alias: embedder[name] for alias, name in _EMBEDDER_ALIASES.items()}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part, state in states.items():
        buffer = io.BytesIO()
        torch.save(OrderedDict((name, tensor.detach().cpu()) for name, tensor in state.items()), buffer)
        written.append(folder / f"{part}_best.pth")
        write_bytes(written[-1], buffer.getvalue())
    return written


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a .pth file without executing anything that is in it, and without the prefix of DataParallel."""
    if not path.is_file():
        raise WeightsError(f"{path}: expected a weight file of the original, found none.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and pickle errors have no common base
        raise WeightsError(
            f"{path}: expected a state dict, found a file that cannot be read as one ({error})."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path}: expected a state dict of tensors, found something else.")
    is_parallel = bool(state) and all(str(name).startswith(_DATA_PARALLEL) for name in state)
    return {str(name).removeprefix(_DATA_PARALLEL) if is_parallel else str(name): t for name, t in state.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: expected the weights of a fold, found none that can be read ({error}).") from error


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path, expected: str) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        differences = " ".join(str(error).split())  # a line for each of several hundred tensors
        raise WeightsError(
            f"{path}: expected weights of {expected}, found others ({differences[:300]} …)."
            " Is it a file of another model?"
        ) from error
