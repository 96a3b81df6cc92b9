"""Notes as Markdown that loads nothing: who reads one is not to be known to another host."""

from __future__ import annotations

import re

_APART = "\u200b"
_FENCE = re.compile(r"(`{3,})([^\n`]*)$|(~{3,})([^\n]*)$", re.MULTILINE)
_LANGUAGE = re.compile(r"\s*[\w+#.-]*\s*", re.ASCII)


def without_pictures(text: str) -> str:
    """`text` for st.markdown, with pictures as links, and Mermaid's diagrams, which may contain pictures, as plain text.

    An invisible space parts the exclamation mark from the bracket: a backslash would itself be undone by one before it.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("![", f"!{_APART}[")
    return _FENCE.sub(_without_diagram, lines)


def _without_diagram(fence: re.Match[str]) -> str:
    marks, language = (fence[1], fence[2]) if fence[1] else (fence[3], fence[4])
    # Anything but a plain word may be the word in disguise, such as &#109;ermaid.
    plain = _LANGUAGE.fullmatch(language) and "mermaid" not in language.lower()
    return marks + (language if plain else "text")
