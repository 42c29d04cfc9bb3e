"""A figure as PNG, SVG, and an HTML page that needs nothing else. The same figure gives the same bytes."""

from __future__ import annotations

import hashlib
import html
import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mlrc_lightning.files import write_bytes
from mlrc_lightning.reporting.figures.style import DARK, style

FORMATS = ("png", "svg", "html")
PNG_DPI = 200

_COLORS = {color: f"--c{number}" for number, color in enumerate(DARK)}


def png_bytes(figure: Figure, title: str, description: str) -> bytes:
    """Returns the picture at `PNG_DPI`, with title and description as its text fields."""
    file = io.BytesIO()
    metadata = {"Software": None, "Title": title, "Description": description}
    with style():
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata=metadata)
    return file.getvalue()


def svg_text(figure: Figure, title: str, description: str) -> str:
    """Returns the drawing with its text as text, named and described for screen readers.

    Neither the date nor a random number is in it; ids differ between figures of different titles, so that several
    can stand in one page.
    """
    file = io.StringIO()
    digest = hashlib.sha256(title.encode()).hexdigest()[:8]
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with style(), matplotlib.rc_context({"svg.hashsalt": f"mlrc-lightning {digest}"}):
        figure.savefig(file, format="svg", dpi=PNG_DPI, metadata=metadata)
    text = re.sub(r"<!DOCTYPE[^>]*>\s*", "", file.getvalue())
    # where the font is not installed, one as wide: the places are laid out for it
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    labels = f'role="img" aria-labelledby="title-{digest} description-{digest}"'
    names = (
        f'\n <title id="title-{digest}">{html.escape(title)}</title>'
        f'\n <desc id="description-{digest}">{html.escape(description)}</desc>'
    )
    text = re.sub(r"<svg ([^>]*)>", lambda found: f"<svg {labels} {found[1]}>{names}", text, count=1)
    # ids of groups are numbered from 1 in every figure
    return re.sub(r'<g id="([a-zA-Z][\w.]*)"', rf'<g id="\1-{digest}"', text)


def inline_svg(figure: Figure, title: str, description: str) -> str:
    """Returns the drawing for a page: colours are the variables of `color_variables`, the title is left to the page."""
    drawing = re.sub(r"<\?xml[^>]*\?>\s*", "", svg_text(figure, title, description))
    return re.sub(
        r"#[0-9a-f]{6}\b", lambda found: f"var({_COLORS[found[0]]})" if found[0] in _COLORS else found[0], drawing
    )


def color_variables() -> tuple[str, str]:
    """Returns the declarations of all colours as CSS variables, light and dark."""
    light = " ".join(f"{name}: {color};" for color, name in _COLORS.items())
    return light, " ".join(f"{name}: {DARK[color]};" for color, name in _COLORS.items())


def color_variable(color: str) -> str:
    """Returns the name of a colour of `style` as a CSS variable."""
    return _COLORS[color]


def html_text(figure: Figure, title: str, description: str) -> str:
    """Returns one page with the drawing inside: light or dark as the reader prefers, and no network."""
    drawing = inline_svg(figure, title, description)
    light, dark = color_variables()
    ink, surface, muted = (_COLORS[color] for color in ("#1b1f24", "#ffffff", "#57606a"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{ margin: 0 auto; padding: 1.5rem; max-width: 75rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var({ink}); background: var({surface}); }}
h1 {{ font-size: 1.25rem; }}
figure {{ margin: 0; overflow-x: auto; }}
figcaption {{ color: var({muted}); max-width: 60rem; }}
svg {{ max-width: 100%; height: auto; }}
g[id^="heading-"] {{ display: none; }}
</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<figure>
{drawing}
<figcaption>{html.escape(description)}</figcaption>
</figure>
</main>
</body>
</html>
"""


def save(figure: Figure, path: Path, title: str, description: str, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Writes a figure in some formats. Returns the files.

    Args:
        figure: From one of the functions of this package.
        path: Without suffix; its folder is made.
        title: One line, for the page and for those who do not see the picture.
        description: What the picture shows, in words and numbers.
        formats: Any of `FORMATS`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        file = path.with_name(f"{path.name}.{name}")
        if name == "png":
            content = png_bytes(figure, title, description)
        elif name == "svg":
            content = svg_text(figure, title, description).encode()
        elif name == "html":
            content = html_text(figure, title, description).encode()
        else:
            raise ValueError(f"Expected a format of {FORMATS}, found {name!r}.")
        write_bytes(file, content)
        written.append(file)
    return written
