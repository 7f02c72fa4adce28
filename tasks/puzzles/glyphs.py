"""Characters as outlines in the units of the axes, of which hundreds take little time to draw."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath


class Glyph(NamedTuple):
    """A character to draw.

    Attributes:
        character: The character.
        x: Of its centre.
        y: Of its centre, on an axis that points down.
        size: Of the font, in units of the axes.
        color: As matplotlib names it.
        opacity: In [0, 1].
        bold: Whether it is bold.
    """

    character: str
    x: float
    y: float
    size: float
    color: str
    opacity: float = 1.0
    bold: bool = False


def draw_glyphs(axes: Axes, glyphs: Sequence[Glyph]) -> None:
    """Draw characters into axes whose y axis points down."""
    outlines = []
    for glyph in glyphs:
        outline = _outline(glyph.character, glyph.bold)
        places = glyph.size * np.asarray(outline.vertices) + (glyph.x, glyph.y)
        outlines.append(Outline(places, outline.codes))
    colors = [to_rgba(glyph.color, glyph.opacity) for glyph in glyphs]
    drawn = PathCollection(outlines, facecolors=colors, linewidths=0, transform=axes.transData)
    axes.add_collection(drawn, autolim=False)


@functools.cache
def _outline(character: str, bold: bool) -> Outline:
    """A character of size 1, centred at the origin and upside down."""
    font = FontProperties(weight="bold" if bold else "normal")
    path = TextPath((0, 0), character, size=1, prop=font)
    box = path.get_extents()
    vertices = (path.vertices - (box.x0 + box.x1, box.y0 + box.y1) / np.array(2.0)) * (1, -1)
    return Outline(vertices, path.codes)
