"""`lightning-s2s components`: every component by slot and name, read from the sources; nothing is imported."""

from __future__ import annotations

from lightning_s2s.commands.messages import OneLineParser
from lightning_s2s.registry import REGISTRY


def run(name: str, arguments: list[str]) -> int:
    """Print kind, name and the first docstring line of each component."""
    OneLineParser(prog=f"lightning-s2s {name}", description=__doc__).parse_args(arguments)
    infos = REGISTRY.list()
    kind_width = max((len(info.kind) for info in infos), default=0)
    name_width = max((len(info.name) for info in infos), default=0)
    for info in infos:
        print(f"{info.kind:<{kind_width}}  {info.name:<{name_width}}  {info.summary}")
    return 0
