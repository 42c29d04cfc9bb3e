"""Losses for tests: one that draws from every global generator, and one by which a rank of several fails."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Noisy(nn.Module):
    """A loss with a parameter of its own, scaled by numbers of Python, numpy and torch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, embeddings, labels, indices=None):
        noise = random.random() + np.random.rand() + torch.rand(())
        same = labels[:, None] == labels[None]
        return (noise * self.scale * torch.where(same, 1.0, -1.0) * torch.cdist(embeddings, embeddings)).mean()


class Failing(Noisy):
    """Fails on rank 1 in its third call: raises, ends without a word, or is killed; `sleep`: is slow on all ranks.

    It touches the file that FAILS_AT names before it fails.
    """

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0

    def forward(self, embeddings, labels, indices=None):
        self.calls += 1
        if self.how == "sleep":
            time.sleep(1.0)
        elif self.calls == 3 and os.environ["RANK"] == "1":
            Path(os.environ["FAILS_AT"]).touch()
            if self.how == "raise":
                raise ValueError("the third call")
            if self.how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(embeddings, labels, indices)


class Slow(Noisy):
    """Is quick in the first epoch of a process, and takes a while for each step after it, of which it writes a line."""

    calls = 0

    def __init__(self, log, epoch):
        super().__init__()
        self.log, self.epoch = log, epoch

    def forward(self, embeddings, labels, indices=None):
        Slow.calls += 1
        if Slow.calls > self.epoch:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
        return super().forward(embeddings, labels, indices)


class OfFoldOne(Noisy):
    """Fails in the process of fold 1, in its third call, at length."""

    calls = 0

    def forward(self, embeddings, labels, indices=None):
        OfFoldOne.calls += 1
        if OfFoldOne.calls == 3 and multiprocessing.current_process().name == "fold 1":
            raise ValueError("fold 1" + "!" * 500_000)
        return super().forward(embeddings, labels, indices)
