"""The report's page around its sections: its looks, its script, and the policy by which a browser lets it ask nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from markupsafe import Markup

GENERATOR_TAG = '<meta name="generator" content="convsweep report">'
"""What the page says it was made by: a file that says so may be replaced by another report."""

_STYLE = """
:root { --paper: #ffffff; --ink: #1f2937; --quiet: #5b6472; --line: #e2e5ea; --card: #f6f7f9; --accent: #2563eb;
  --good: #15803d; --warn: #b4540a; --bad: #c81e1e; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161d; --ink: #eceff4; --quiet: #a2abb8; --line: #333b47; --card: #1c222b; --accent: #7aa7ff;
    --good: #4ade80; --warn: #fdba74; --bad: #f87171 }
}
* { box-sizing: border-box }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100% }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 0.3rem }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.6rem; padding-top: 0.9rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.02rem; margin: 1.4rem 0 0.3rem }
p { margin: 0.4rem 0; max-width: 60rem }
a { color: var(--accent) }
.quiet, figcaption { color: var(--quiet); font-size: 0.9em }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; list-style: none; padding: 0; margin: 0.9rem 0 0; font-size: 0.93em }
.badge { display: inline-block; border-radius: 0.5em; padding: 0.08em 0.6em; font-size: 0.8rem; font-weight: 600; vertical-align: 0.35em;
  background: var(--card); border: 1px solid var(--line); color: var(--quiet) }
.FINISHED { color: var(--good) } .INTERRUPTED { color: var(--warn) } .FAILED { color: var(--bad) } .RUNNING { color: var(--accent) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.7rem; margin: 1rem 0 }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.65rem 0.85rem }
dt { color: var(--quiet); font-size: 0.86em } dd { margin: 0 }
.cards dd { font-size: 1.4rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums }
.cards dd.below { font-size: 0.8rem; font-weight: 400; color: var(--quiet); line-height: 1.35 }
.facts { display: grid; grid-template-columns: minmax(6.5rem, max-content) 1fr; gap: 0.35rem 1.2rem; margin: 0.6rem 0 }
.facts dt { padding-top: 0.1em }
.said { border-left: 3px solid var(--accent); background: var(--card); padding: 0.5rem 0.9rem; margin: 0.7rem 0; max-width: 62rem }
.note, pre { white-space: pre-wrap }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.6rem 0.8rem; margin: 0.4rem 0;
  font-size: 0.86rem; font-family: ui-monospace, monospace }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.6rem }
figure { margin: 0.4rem 0 1.2rem; min-width: 0 }
figcaption { margin: 0.1rem 0 0.5rem; max-width: 60rem }
.plot, .drawing { width: 100%; min-width: 0 } .plot > div { width: 100% }
.plot svg, .drawing svg { max-width: 100%; height: auto; display: block }
.drawing .dark { display: none }
@media (prefers-color-scheme: dark) { .drawing .dark { display: block } .drawing .light { display: none } }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 0.5rem; margin: 0.5rem 0 }
.scroll:has(.sortable) { max-height: 80vh }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.86rem; overflow-wrap: normal }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
th, td { text-align: left; padding: 0.32rem 0.65rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; white-space: nowrap; z-index: 1 }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
th button::after { content: "\\2195"; color: var(--quiet); font-weight: 400; padding-left: 0.3em }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--accent) }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--accent) }
tbody tr:last-child td { border-bottom: 0 } tbody tr:hover td { background: var(--card) }
td { white-space: nowrap } td.text { white-space: normal; min-width: 20rem }
.number { text-align: right; font-variant-numeric: tabular-nums }
tr.strong td { font-weight: 600 }
@media print {
  :root { --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb; --card: #fff; --accent: #000;
    --good: #000; --warn: #000; --bad: #000 }
  body { max-width: none; padding: 0; font-size: 10pt } nav { display: none }
  h2, h3 { break-after: avoid } figure, .cards div, tr { break-inside: avoid }
  .scroll { overflow: visible; max-height: none; border: 0 } th { position: static } td { white-space: normal }
  th button::after { content: "" !important }
  .sortable :is(th, td):nth-child(n + 10) { display: none } /* what paper has no room for: the hyperparameters */
  td.text { min-width: 0 } table { font-size: 7.5pt } th, td { padding: 0.15rem 0.3rem }
  .drawing .dark { display: none !important } .drawing .light { display: block !important }
}
"""

# `ast`: Vega reads its expressions with an interpreter of its own, as the policy forbids code that is made of text.
_SCRIPT = """
(() => {
  "use strict";
  const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const options = {mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: {theme}};
  for (const plot of document.querySelectorAll("[data-chart]")) {
    const drawing = document.createElement("div");
    drawing.className = "drawn";
    plot.append(drawing);
    const described = JSON.parse(document.getElementById(plot.dataset.chart).textContent);
    vegaEmbed(drawing, described, options).then(
      () => plot.querySelector(".picture").remove(),
      (error) => { drawing.remove(); console.error(error); });
  }
  const key = (cell) => "number" in cell.dataset ? Number(cell.dataset.number) : cell.textContent;
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", {numeric: true});
  const sort = (head, heads) => {
    const up = head.getAttribute("aria-sort") !== "ascending", place = heads.indexOf(head);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => [key(row.cells[place]), row]);
    const there = rows.filter(([value]) => value !== ""), missing = rows.filter(([value]) => value === "");
    there.sort(([a], [b]) => up ? compare(a, b) : compare(b, a));
    body.append(...[...there, ...missing].map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head, heads));
      head.append(button);
    }
  }
})();
"""


def page(title: str, head: Markup, sections: Iterable[tuple[str, Markup]], library: str) -> str:
    """The whole page: its `head`, then the sections under their titles. `library` is the script that draws the charts."""
    sections = list(sections)
    names = [f"section-{place}" for place in range(len(sections))]
    links = Markup("").join(
        Markup('<li><a href="#{}">{}</a></li>').format(name, heading)
        for name, (heading, _) in zip(names, sections, strict=True)
    )
    body = Markup("").join(
        Markup('<section aria-labelledby="{0}"><h2 id="{0}">{1}</h2>\n{2}</section>\n').format(name, heading, content)
        for name, (heading, content) in zip(names, sections, strict=True)
    )
    scripts = [_script(library), _script(_SCRIPT)]
    whole = Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{}\n'
        '<meta http-equiv="Content-Security-Policy" content="{}">\n<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        '<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<header>{}<nav aria-label="Sections"><ul>{}</ul></nav></header>\n'
        "<main>\n{}</main>\n{}\n</body>\n</html>\n"
    ).format(
        Markup(GENERATOR_TAG),
        _policy(scripts),
        title,
        Markup(_STYLE),
        head,
        links,
        body,
        Markup("\n").join(Markup("<script>{}</script>").format(script) for script in scripts),
    )
    return str(whole)  # from here on a text like others


def _script(code: str) -> Markup:
    """The code as it may stand in a script element: with nothing that ends it or begins a comment, which it means in strings alone."""
    lines = code.replace("\r\n", "\n").replace(
        "\r", "\n"
    )  # as a browser reads it before it compares it with the policy
    return Markup(re.sub(r"<(?=/script|!--)", r"\\x3c", lines, flags=re.IGNORECASE))


def _policy(scripts: Iterable[str]) -> str:
    """Nothing may be asked for, and no script may run but these, so that not even a hole in our escaping lets one in."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
