"""Reads the pages of a report as a browser and a screen reader would."""

from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta", "link", "img", "br", "path", "circle", "use", "rect", "stop"}


class Reader(HTMLParser):
    """Collects what the checks of a page ask for.

    Attributes:
        title: Of the page.
        language: Of the page.
        headings: Level and words, in order.
        addresses: Tag and address of everything that is loaded or linked.
        ids: In order.
        problems: What a screen reader would stumble over.
    """

    def __init__(self, text):
        super().__init__()
        self.title, self.language = "", None
        self.headings, self.addresses, self.ids, self.problems = [], [], [], []
        self.landmarks, self.unnamed = [], []
        self._open = []
        self.feed(text)
        self.close()
        names = set(self.ids)
        self.problems += [f"no element {name!r}" for name in self.unnamed if name not in names]
        self.problems += [f"id {name!r} twice" for name in sorted(names) if self.ids.count(name) > 1]

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in _VOID:
            self._open.append((tag, []))
        if tag == "html":
            self.language = values.get("lang")
        if "id" in values:
            self.ids.append(values["id"])
        for name in ("href", "src", "xlink:href", "srcset", "action", "poster", "data"):
            if name in values:
                self.addresses.append((tag, values[name]))
        if tag in ("main", "header", "footer", "nav"):
            self.landmarks.append((tag, values.get("aria-label")))
        if tag == "img" and not values.get("alt"):
            self.problems.append(f"image without words: {str(values.get('src'))[:60]}")
        is_drawing = tag == "svg" and values.get("aria-hidden") != "true"
        if is_drawing and (
            values.get("role") != "img" or not (values.get("aria-label") or "aria-labelledby" in values)
        ):
            self.problems.append(f"drawing without role or words: {values}")
        self.unnamed += values.get("aria-labelledby", "").split()
        if tag == "th" and values.get("scope") not in ("row", "col", "colgroup"):
            self.problems.append(f"heading cell without scope: {values}")
        if values.get("tabindex") == "0" and not (values.get("role") and values.get("aria-label")):
            self.problems.append(f"can be focused, but has no name: {values}")

    def handle_data(self, data):
        for _, words in self._open:
            words.append(data)

    def handle_endtag(self, tag):
        while self._open:
            name, words = self._open.pop()
            text = " ".join("".join(words).split())
            if name in ("h1", "h2", "h3", "h4"):
                self.headings.append((int(name[1]), text))
            if name == "title" and not any(other == "svg" for other, _ in self._open):
                self.title = text
            if name in ("a", "button", "summary", "caption") and not text and name != "a":
                self.problems.append(f"{name} without words")
            if name == tag:
                break


def is_in_order(levels):
    """Whether headings go down one level at a time, from a single first one."""
    return levels[:1] == [1] and levels.count(1) == 1 and all(below - above <= 1 for above, below in pairwise(levels))


def contrast(one, other):
    """Contrast of two colours #rrggbb. Source: WCAG 2.2, relative luminance."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
