"""QGIS's style of a mask, a file beside it that QGIS loads with the layer."""

from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segpipe import __version__
from segpipe.formats.style import Color
from segpipe.storage.ownership import STYLE_KEY

DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"

VERSION = "3.28.0"
"""Version of the style's format, which all later versions of QGIS read."""


def qgis_style(names: Mapping[int, str], colors: Mapping[int, Color]) -> bytes:
    """A complete paletted style with the classes only: a partial style with just an opacity would clear the palette.

    Nodata stays that of the raster, which QGIS does not draw.
    """
    root = Element("qgis", version=VERSION, styleCategories="AllStyleCategories", hasScaleBasedVisibilityFlag="0")
    properties = SubElement(SubElement(root, "customproperties"), "Option", type="Map")
    SubElement(properties, "Option", name=STYLE_KEY, type="QString", value=__version__)
    pipe = SubElement(root, "pipe")
    _add_provider(pipe)
    _add_renderer(pipe, names, colors)
    SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0", colorizeOn="0", invertColors="0")
    SubElement(pipe, "rasterresampler", maxOversampling="2")
    SubElement(pipe, "resamplingStage").text = "resamplingFilter"
    SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    return (DOCTYPE + ElementTree.tostring(root, encoding="unicode") + "\n").encode()


def _add_provider(pipe: Element) -> None:
    """Set nearest-neighbour resampling: class ids must not be averaged."""
    nearest = {"zoomedInResamplingMethod": "nearestNeighbour", "zoomedOutResamplingMethod": "nearestNeighbour"}
    SubElement(SubElement(pipe, "provider"), "resampling", {"enabled": "false", "maxOversampling": "2", **nearest})


def _add_renderer(pipe: Element, names: Mapping[int, str], colors: Mapping[int, Color]) -> None:
    band = {"band": "1", "alphaBand": "-1", "opacity": "1", "nodataColor": ""}
    renderer = SubElement(pipe, "rasterrenderer", {"type": "paletted", **band})
    SubElement(renderer, "rasterTransparency")
    palette = SubElement(renderer, "colorPalette")
    for value, name in names.items():
        red, green, blue, alpha = colors[value]
        color = f"#{red:02x}{green:02x}{blue:02x}"
        SubElement(palette, "paletteEntry", value=str(value), color=color, alpha=str(alpha), label=name)
