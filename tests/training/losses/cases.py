"""What the losses are compared on: the paper's optima and random settings, each built as a trial builds it."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import build
from mlrc_lightning.training.objective import Objective
from tests.training.losses import reference

# a loss that the paper does not have is none of these
LOSSES = sorted(
    path.stem
    for path in (config_folder() / "loss").glob("*.yaml")
    if yaml.safe_load(path.read_text(encoding="utf-8"))["paper_name"] is not None
)
SETTINGS = ("cub200", "cars196", "sop", "cub200_batch256")
RANDOM = ("random 0", "random 1", "random 2", "random 3")  # one for each setting's space
CASES = (*SETTINGS, *RANDOM)
BATCHES = ("wide", "crowded")
NUM_CLASSES = 40
# arguments of a loss that its formula does not have, or has under another name
_WIRING = {"_target_", "num_classes", "embedding_size", "nu", "learn_beta", "embedding_regularizer"}
_RENAMED = {"embedding_reg_weight": "regularizer_weight"}
_OWN_PARAMETERS = {"W": "weights", "fc": "centers", "proxies": "proxies", "beta": "beta"}


@functools.cache
def composed(loss, setting):
    """The configuration of `experiment=mlrc/<setting> loss=<loss> hyperparameters=paper`, with a small trunk."""
    overrides = [f"experiment=mlrc/{setting}", f"loss={loss}", "hyperparameters=paper", "trunk=small_cnn"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


@dataclass(frozen=True)
class Case:
    """One loss with one setting of its arguments."""

    loss: str
    name: str
    function: dict = field(hash=False)
    miner: dict | None = field(hash=False)

    def objective(self, embedding_size, dtype):
        """Loss and miner as a trial builds them, their parameters the same float32 values whatever the type."""
        facts = {"num_train_classes": NUM_CLASSES, "embedding_size": embedding_size}
        torch.manual_seed(0)
        loss = build(self.function, "loss.function", **facts)
        miner = None if self.miner is None else build(self.miner, "loss.miner", **facts)
        if self.loss == "margin_per_class":  # all start alike, which would hide a mix-up of classes
            torch.nn.init.uniform_(loss.beta, loss.beta[0].item() - 0.1, loss.beta[0].item() + 0.1)
        return Objective(loss, miner).to(dtype)

    def reference(self, x, labels, objective, number):
        """The reference's loss in the type of x, and the leaves that stand for the loss's own parameters."""
        arguments = {_RENAMED.get(k, k): v for k, v in self.function.items() if k not in _WIRING}
        if self.miner is not None:
            arguments["epsilon"] = self.miner["epsilon"]
        own = {name: p.detach().to(x.dtype).requires_grad_() for name, p in objective.loss.named_parameters()}
        arguments.update({_OWN_PARAMETERS[name]: value for name, value in own.items()})
        name = "margin" if self.loss == "margin_per_class" else self.loss
        return getattr(reference, name)(x, labels.tolist(), number=number, **arguments), own


@functools.cache
def case(loss, name):
    """The paper's optimum at a setting, or a point drawn from the search space of one of them."""
    if name in SETTINGS:
        node = OmegaConf.to_container(composed(loss, name).loss, resolve=True)
        return Case(loss, name, node["function"], node["miner"])
    rng = np.random.default_rng([LOSSES.index(loss), RANDOM.index(name)])
    cfg = composed(loss, SETTINGS[RANDOM.index(name)])
    node = OmegaConf.to_container(cfg.loss, resolve=True)
    for key, entry in cfg.search_space.items():
        *path, last = key.split(".")[1:]
        functools.reduce(dict.__getitem__, path, node)[last] = _drawn(entry, rng)
    return Case(loss, name, node["function"], node["miner"])


def _drawn(entry, rng):
    if entry["type"] == "choice":
        return int(rng.choice(list(entry["values"])))
    low, high = entry["bounds"]
    if isinstance(low, int):
        return int(rng.integers(low, high + 1))
    return (
        float(np.exp(rng.uniform(np.log(low), np.log(high)))) if entry["log_scale"] else float(rng.uniform(low, high))
    )


@functools.cache
def batch(loss, kind):
    """Embeddings before normalisation (32, E), float32, and labels (32,).

    `wide` has the paper's size and distances as after a short training; in `crowded` they range from 0 to 2, so that
    every hinge is met on both sides.

    Four images of eight classes for embedding losses; for classification losses one image of most classes, as batches
    that straddle two passes of the sampler have.
    """
    embedding_size, noise = {"wide": (128, 2.0), "crowded": (5, 0.7)}[kind]
    generator = torch.Generator().manual_seed(7)
    if composed(loss, "cub200").loss.samples_per_class == 4:
        labels = torch.arange(8).repeat_interleave(4) * 3
    else:
        labels = torch.randint(0, NUM_CLASSES, (32,), generator=generator)
    centers = torch.randn(NUM_CLASSES, embedding_size, generator=generator)
    x = centers[labels] + noise * torch.randn(32, embedding_size, generator=generator)
    return 3.0 * x, labels
