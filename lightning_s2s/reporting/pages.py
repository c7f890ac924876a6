"""HTML pages from Jinja templates: each page is one self-contained file that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.evaluation.results import printable
from lightning_s2s.support.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"


def write_page(path: Path, template: str, values: dict[str, Any]) -> None:
    """Render a template of `templates/` into the file `path`, which appears complete or not at all.

    Args:
        path: HTML file; missing folders are created.
        template: File name of the template.
        values: Variables of the template. Strings among them are escaped.
    """
    write_text(path, _ENVIRONMENT.get_template(template).render(values))


def static(name: str) -> Markup:
    """A file of `static/`, CSS or JavaScript, for inlining into a page."""
    return Markup((STATIC / name).read_text(encoding="utf-8"))


def tone_class(emotion: str | None) -> str:
    """CSS class with the colour of an emotion."""
    return f"tone-{emotion}" if emotion in EMOTIONS else "tone-other"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.globals["static"] = static
_ENVIRONMENT.filters |= {"printable": printable, "tone": tone_class}
