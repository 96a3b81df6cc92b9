"""YAML as people write it: 1e-3 is a number, which PyYAML, that follows YAML 1.1, takes for text."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floating-point numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The value that the text is. Raises yaml.YAMLError when it is no YAML."""
    return yaml.load(text, _Loader)
