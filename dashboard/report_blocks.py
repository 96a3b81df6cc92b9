"""What the report's sections are made of: cards of numbers, charts with their captions, remarks. Pure functions.

All texts are escaped, as `Markup.format` does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import altair as alt
from markupsafe import Markup

from dashboard import report_charts
from dashboard.sweep_facts import Number


def cards(numbers: Iterable[Number]) -> Markup:
    """Headline numbers, each with what stands below it."""
    each = Markup('<div title="{}"><dt>{}</dt><dd>{}</dd><dd class="below">{}</dd></div>\n')
    listed = joined(each.format(n.about, n.label, n.value, n.below) for n in numbers)
    return Markup('<dl class="cards">\n{}</dl>\n').format(listed)


def figure(name: str, title: str, chart: alt.Chart | alt.LayerChart, alt_text: str, caption: str = "") -> Markup:
    """A chart under its title, with its caption; `name` is its own in the page."""
    heading = Markup("<h3>{}</h3>").format(title) if title else Markup("")
    said = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup("<figure>{}{}{}</figure>\n").format(heading, said, report_charts.plot(name, chart, alt_text))


def pair(figures: Iterable[Markup]) -> Markup:
    """Figures side by side, where there is room."""
    return Markup('<div class="pair">\n{}</div>\n').format(joined(figures))


def said(text: str) -> Markup:
    """A remark that is not to be overlooked."""
    return Markup('<p class="said">{}</p>\n').format(text)


def quiet(text: str) -> Markup:
    """A remark for those who want to know more."""
    return Markup('<p class="quiet">{}</p>\n').format(text)


def note(text: str) -> Markup:
    """A note as it was written: Markdown, of which nothing is made here."""
    return Markup('<div class="said note">{}</div>\n').format(text)


def joined(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("").join(parts)


def moment(at: datetime) -> str:
    """Such as '3 November 2026, 14:05 UTC'."""
    return f"{at.astimezone(UTC):%-d %B %Y, %H:%M} UTC"
