"""A chart in the report: drawn by Vega where scripts run, and until then, or in a mail's preview, a picture of it.

Both take the colour of axes and letters from the page, light or dark. Pure functions.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import altair as alt
import pandas as pd
from markupsafe import Markup

WIDTH = 720
"""Pixels of the picture; the drawing is as wide as the page has room."""
BUNDLE = "window.vegaEmbed = vegaEmbed;"
"""What the bundle of Vega, Vega-Lite and vegaEmbed leaves behind for the report's own script."""
_CONFIG: dict[str, Any] = {
    "aria": False,  # the figure has a text; one for each of thousands of points would be most of the file
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "#80808033",
        "domainColor": "#80808080",
        "tickColor": "#80808080",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 11},
    "view": {"stroke": None},
}


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and vegaEmbed as one classic script of about 0.9 MB, which asks nobody for anything."""
    import vl_convert  # 90 MB, which nobody needs before

    # In a function of its own: its hundreds of one-letter names would be those of the whole page.
    return f"(() => {{{vl_convert.javascript_bundle(snippet=BUNDLE, vl_version=_version())}}})();"


def plot(name: str, chart: alt.Chart | alt.LayerChart, alt_text: str) -> Markup:
    """The chart; `name` is its own in the page, and `alt_text` is for those who cannot see it."""
    described = specification(chart)
    return Markup(
        '<div class="plot" role="img" aria-label="{}" data-chart="{}"><div class="picture">{}</div></div>'
        '<script type="application/json" id="{}">{}</script>\n'
    ).format(alt_text, name, picture(described), name, in_script(described | {"width": "container"}))


def specification(chart: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """The chart for Vega-Lite with all its data inside, without a width."""
    described: dict[str, Any] = _with_values(chart).to_dict()
    described.pop("$schema", None)  # an address, which nothing here asks for
    return described | {"config": _CONFIG, "autosize": {"type": "fit-x", "contains": "padding"}}


def picture(described: dict[str, Any]) -> Markup:
    """The same as SVG, whose texts Vega has escaped."""
    import vl_convert

    drawn = vl_convert.vegalite_to_svg(described | {"width": WIDTH}, vl_version=_version(), allowed_base_urls=[])
    return Markup(drawn)


def in_script(content: object) -> Markup:
    """The content as JSON that cannot end the script element that it stands in, nor begin a comment there."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)  # ASCII alone
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _with_values(chart: Any) -> Any:
    """A copy whose tables are plain values. Altair would ask its data transformer, of which a process has one: Streamlit's, perhaps."""
    copy = chart.copy(deep=False)
    if isinstance(copy.data, pd.DataFrame):
        copy.data = alt.InlineData(values=alt.to_values(copy.data)["values"])
    if isinstance(copy, alt.LayerChart):
        copy.layer = [_with_values(layer) for layer in copy.layer]
    return copy


def _version() -> str:
    """Vega-Lite's version that the installed Altair writes for, as vl_convert names it: '6.4'."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
