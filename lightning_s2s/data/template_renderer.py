"""Renders chat templates, which are untrusted programs, in a separate process with limits on time and memory.

jinja's sandbox keeps a template from files and from Python's internals. It limits neither loops nor the size of what
they build, some of which (`'x' * 10**10`, `10**10**10`) happens in a single operation or when the template is compiled.

Run as a script, this file reads a job from its standard input and renders it. It only needs the standard library and
jinja2: transformers, which has the same environment, takes seconds to import.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MAX_CPU_SEC = 2
"""CPU time for all dialogues of a job; a template takes a few milliseconds."""
MAX_WALL_SEC = 60
"""Wall-clock time, generous for a busy machine; only a template that waits reaches it."""
MAX_MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 20
"""Maximum length of a rendered dialogue without its contents."""


class TemplateBombError(ValueError):
    """A template takes more time or memory than rendering dialogues can need."""


Rendered = tuple[str | None, str | None]
"""A dialogue's text and None, or None and the template's objection."""


def render_apart(template: str, variables: dict[str, Any], dialogues: Sequence[Any]) -> Sequence[Rendered]:
    """Render dialogues through a chat template, in a separate process; results are cached.

    Args:
        template: The tokenizer's jinja template.
        variables: Variables of the template beside the messages.
        dialogues: Pairs (messages, add_generation_prompt).

    Raises:
        TemplateBombError: The template takes too much time or memory.
    """
    return _run(json.dumps({"template": template, "variables": variables, "dialogues": dialogues}))


@lru_cache
def _run(job: str) -> Sequence[Rendered]:
    refusal = f"chat template: takes more than {MAX_CPU_SEC} s or {MAX_MEMORY_BYTES >> 20:,} MiB"
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input=job.encode(), capture_output=True, timeout=MAX_WALL_SEC
        )
    except subprocess.TimeoutExpired:
        raise TemplateBombError(refusal) from None
    if done.returncode:
        raise TemplateBombError(refusal)
    return [(text, problem) for text, problem in json.loads(done.stdout)]


PLAIN = {
    "Add", "And", "Compare", "Concat", "CondExpr", "Const", "For", "Getattr", "Getitem", "If", "Name", "Not", "Operand",
    "Or", "Output", "Slice", "Template", "TemplateData", "Test",
}  # fmt: skip
"""Syntax nodes that can only concatenate parts of the dialogue and of the template."""
PLAIN_FILTERS = {"capitalize", "length", "lower", "title", "trim", "upper"}


def is_plain(template: str) -> bool:
    """Whether a template can only iterate over the messages and write them, so that it needs no limits."""
    from jinja2 import Environment, nodes

    if len(template) > 20_000:
        return False
    try:
        tree = Environment(trim_blocks=True, lstrip_blocks=True).parse(template)
    except Exception:  # the renderer reports syntax errors
        return False
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.For):
            over = node.iter.node if isinstance(node.iter, nodes.Getitem) else node.iter
            if node.recursive or not isinstance(over, nodes.Name) or over.name != "messages":
                return False
            if any(node.find_all(nodes.For)):
                return False
        elif isinstance(node, nodes.Call):
            if not isinstance(node.node, nodes.Name) or node.node.name != "raise_exception":
                return False
        elif isinstance(node, nodes.Filter):
            if node.name not in PLAIN_FILTERS or node.args:
                return False
        elif type(node).__name__ not in PLAIN:
            return False
    return True


def render(template: str, variables: dict[str, Any], dialogues: Sequence[Any]) -> Sequence[Rendered]:
    """`render_apart` in this process, for plain templates."""
    try:
        compiled = _environment().from_string(template)
    except Exception as error:  # of jinja, or of Python if an expression is evaluated when compiled
        return [(None, _reason(error))] * len(dialogues)
    rendered: list[Rendered] = []
    for messages, add_generation_prompt in dialogues:
        values = {**variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            text = compiled.render(values)  # not as keywords: a variable may be named `self`
        except MemoryError:
            raise
        except Exception as error:  # templates raise errors such as "System role not supported"
            rendered.append((None, _reason(error)))
            continue
        too_long = len(text) > MAX_CHARACTERS
        problem = f"writes {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed"
        rendered.append((None, problem) if too_long else (text, None))
    return rendered


def _environment() -> Any:
    """The environment that transformers gives to templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's content; it has no effect here."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _reason(error: Exception) -> str:
    return " ".join(f"{error}".split())[:500] or type(error).__name__


def _main() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the parent process limits the time
        pass
    else:
        for kind, most in ((resource.RLIMIT_CPU, MAX_CPU_SEC), (resource.RLIMIT_AS, MAX_MEMORY_BYTES)):
            resource.setrlimit(kind, (most, most))
    job = json.load(sys.stdin.buffer)
    try:
        rendered = render(job["template"], job["variables"], job["dialogues"])
    except MemoryError:
        return 1
    print(json.dumps(rendered))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
