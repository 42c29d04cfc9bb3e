"""docs/protocol.md: every section that is cited is there, and its numbers are those of the code and of conf/."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mlrc_lightning.data.splits import mlrc_classes
from mlrc_lightning.metrics.functional import average_precision_at_r, precision_at_1, r_precision

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^##+ (\d(?:\.\d)?) ", PAGE, flags=re.MULTILINE))
KINDS = (".py", ".yaml", ".md")


def rows(heading):
    """Returns the cells of the first table below a heading, without its head."""
    lines = PAGE.partition(f" {heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    last = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 : last]]


def citations():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    files = listed or [str(path.relative_to(ROOT)) for folder in ("mlrc_lightning", "conf") for path in
                       (ROOT / folder).rglob("*")]  # fmt: skip
    for name in files:
        if name.endswith(KINDS) and name != "docs/protocol.md" and (ROOT / name).is_file():
            for number in re.findall(r"§ ?(\d+(?:\.\d+)?)", (ROOT / name).read_text(encoding="utf-8")):
                yield name, number


def test_every_cited_section_is_on_the_page():
    found = list(citations())
    assert len(found) > 100
    assert [(name, number) for name, number in found if number not in SECTIONS] == []


def test_the_example_has_the_accuracies_of_the_code():
    relevant = torch.tensor([[cell == "1" for cell in rows("1.7 Accuracies")[0][1:]]])
    assert relevant.tolist() == [[True, False, True, True, False]]
    num_relevant = torch.tensor([5])
    found = re.search(r"Precision@1 is (\S+)\. R-Precision is \S+ = (\S+)\. MAP@R is .* = (\d\.\d+)\.", PAGE)
    assert precision_at_1(relevant).item() == float(found[1])
    assert r_precision(relevant, num_relevant).item() == pytest.approx(float(found[2]))
    assert average_precision_at_r(relevant, num_relevant).item() == pytest.approx(float(found[3]), abs=5e-5)


def positions(text):
    ranges = [part.split("–") for part in text.split(", ")]
    return tuple(position for low, high in ranges for position in range(int(low), int(high) + 1))


def test_the_folds_are_those_of_the_split():
    for fold, *cells in rows("1.6 Splits and folds"):
        for place, num_classes in enumerate((200, 196, 22634)):
            split = mlrc_classes(num_classes, int(fold), 4)
            assert (split.train, split.val) == tuple(map(positions, cells[2 * place : 2 * place + 2]))


def test_early_stopping_is_that_of_conf():
    interval, patience, _ = rows("1.3 Validation, early stopping, selection")
    for place, name in enumerate(("cub200", "cars196", "sop"), start=1):
        dataset = OmegaConf.load(ROOT / f"conf/dataset/{name}.yaml")
        assert (dataset.save_interval, dataset.patience) == (int(interval[place]), int(patience[place]))
