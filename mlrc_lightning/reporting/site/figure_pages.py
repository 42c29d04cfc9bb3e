"""The page of figures, and single figures inside other pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import mlrc_lightning.reporting.figures.retrieval
from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_bytes, read_npz, write_bytes
from mlrc_lightning.reporting.figures.collect import Drawing, Lacking, collect
from mlrc_lightning.reporting.figures.comparison import pairwise_heat_map
from mlrc_lightning.reporting.figures.retrieval import projection
from mlrc_lightning.reporting.figures.save import inline_svg
from mlrc_lightning.reporting.site.comparisons import Comparisons
from mlrc_lightning.reporting.site.layout import document, text
from mlrc_lightning.results.runs import RunSet

PAGE = "figures.html"
NAMES = ("figure_1", "figure_2a", "figure_2b", "figure_2b_map_at_r", "figure_3a", "figure_3b")
"""Those of the page; searches, runs and tables have theirs on their own pages."""


def figures_document(outputs: Path, sets: Sequence[RunSet]) -> str:
    """Returns the page of the paper's figures, and of ours beside them.

    Args:
        outputs: Folder of results.
        sets: All sets of runs in it.

    Raises:
        RecordError: A stored file is damaged.
    """
    drawings: list[Drawing] = []
    lacking: list[str] = []
    for name in NAMES:
        for found in collect(name, outputs, sets):
            if isinstance(found, Lacking):
                lacking.append(found.text)
            else:
                drawings.append(found)
    body: list[str] = []
    for drawing in drawings:
        body += [f"<h2>{text(drawing.title)}</h2>", _figure(drawing.figure, drawing.title, drawing.description)]
    if lacking:
        body += ["<h2>Not drawn</h2>", _list(lacking)]
    return document(PAGE, "Figures", body)


def heat_map(found: Comparisons, title: str) -> str:
    """Returns the heat map of all pairs as HTML. It is empty where there are none."""
    if not found.pairs:
        return ""
    title = f"Pairwise tests: {title}"
    description = (
        f"Row minus column, in percentage points, of {len(found.losses)} losses; {found.num_different} of"
        f" {len(found.pairs)} pairs differ at the 5 % level after Holm's correction."
    )
    return _figure(pairwise_heat_map(title, found.losses, found.pairs), title, description)


class Projections:
    """Draws stored projections, and remembers the drawings by what they are of: each takes a second.

    Args:
        memory: Folder of the remembered drawings.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        code = Path(mlrc_lightning.reporting.figures.retrieval.__file__).read_bytes()
        self._version = hashlib.sha256(code).hexdigest() + matplotlib.__version__
        self.used: set[Path] = set()

    def draw(self, path: Path, title: str) -> str:
        """Returns a projection as HTML.

        Raises:
            RecordError: The file is damaged.
        """
        content = read_bytes(path)
        key = hashlib.sha256(self._version.encode() + title.encode() + content).hexdigest()
        remembered = self._memory / f"{key}.svg"
        self.used.add(remembered)
        if remembered.exists():
            return remembered.read_text(encoding="utf-8")
        names = ("points", "labels", "class_names")
        try:
            stored = read_npz(path)
            points, labels, class_names = (stored[name] for name in names)
        except KeyError as error:
            raise RecordError(f"{path}: expected the arrays {', '.join(names)}, found {error}. Remove it.") from error
        title = f"Test embeddings, t-SNE: {title}"
        description = (
            f"{len(points)} test images of {len(np.unique(labels))} classes, projected by t-SNE; the largest classes"
            " have a mark each. Distances between groups mean nothing."
        )
        html = _figure(projection(title, points, labels, class_names.tolist()), title, description)
        self._memory.mkdir(parents=True, exist_ok=True)
        write_bytes(remembered, html.encode())
        return html


def _figure(figure: Figure, title: str, description: str) -> str:
    return (
        f'<figure class="drawing"><div tabindex="0" role="region" aria-label="{text(title)}">'
        f"{inline_svg(figure, title, description)}</div><figcaption>{text(description)}</figcaption></figure>"
    )


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
