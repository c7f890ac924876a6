"""`lightning-s2s components`: as text, for machines, and as the table of the docs, which must be up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_s2s.cli import main
from lightning_s2s.commands.components import as_table, as_text
from lightning_s2s.components.registry import REGISTRY, ComponentInfo
from lightning_s2s.support import extras
from parts.paths import ROOT

COMPONENTS = ROOT / "docs" / "components.md"
INFOS = [
    ComponentInfo("encoder", "far", "From far | away.", "lightning_s2s.encoders.far", rates="16 kHz -> 50 Hz",
                  licence="MIT", extra="far", paper="Doe et al., arXiv:1234.56789", size="20M"),
    ComponentInfo("encoder", "plugged", "x" * 60 + " " + "y" * 60, "plugged.parts"),
    ComponentInfo("vocoder", "near", "Here.", "lightning_s2s.components.vocoders.near", extra="near"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def requirements(monkeypatch):
    """`far` needs a package that isn't there, `near` one that is."""
    packages = ['no-such-package>=1; extra == "far"', 'pytest; extra == "near"']
    monkeypatch.setattr(extras, "requires", lambda name: packages)


def test_text_is_grouped_by_slot_and_says_what_to_install():
    assert as_text(INFOS).splitlines() == [
        "encoder",
        "  far      16 kHz -> 50 Hz | weights: MIT | needs pip install 'lightning-s2s[far]'",
        "           From far | away.",
        "  plugged  " + "x" * 60,
        "           " + "y" * 60,
        "vocoder",
        "  near     extra near",
        "           Here.",
    ]


def test_the_text_of_all_components_fits_a_terminal(capsys):
    assert main(["components"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    slots = [line for line in lines if not line.startswith(" ")]
    assert slots == ["encoder", "adapter", "llm", "speech_decoder", "vocoder"]


def test_json_holds_everything(capsys, monkeypatch):
    monkeypatch.setattr(type(REGISTRY), "list", lambda self: INFOS)
    assert main(["components", "--json"]) == 0
    far, _, near = json.loads(capsys.readouterr().out)
    assert far == {
        "kind": "encoder", "name": "far", "summary": "From far | away.", "module": "lightning_s2s.encoders.far",
        "paper": "Doe et al., arXiv:1234.56789", "rates": "16 kHz -> 50 Hz", "size": "20M", "licence": "MIT",
        "extra": "far", "missing_packages": ["no-such-package"], "install": "pip install 'lightning-s2s[far]'",
    }  # fmt: skip
    assert (near["extra"], near["missing_packages"], near["install"]) == ("near", [], "")


def test_the_table_has_the_built_in_components_with_links_to_papers():
    assert as_table(INFOS).splitlines() == [
        "| slot | name | what it is | paper | rates | size | licence | extra |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| encoder | `far` | From far \\| away. | Doe et al., [1234.56789](https://arxiv.org/abs/1234.56789) "
        "| 16 kHz -> 50 Hz | 20M | MIT | `far` |",
        "| vocoder | `near` | Here. | | | | | `near` |",
    ]


def test_the_table_of_the_documentation_is_up_to_date(tmp_path):
    """`lightning-s2s components --markdown docs/components.md` writes it."""
    copy = tmp_path / "components.md"
    copy.write_text(COMPONENTS.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["components", "--markdown", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == COMPONENTS.read_text(encoding="utf-8")


def test_only_the_block_between_the_marks_is_replaced(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("# Before\n<!-- components -->\nold\n<!-- /components -->\nAfter \\1\n")
    assert main(["components", "--markdown", str(path)]) == 0
    assert main(["components", "--markdown", "-"]) == 0
    table = capsys.readouterr().out
    assert path.read_text() == f"# Before\n<!-- components -->\n\n{table}\n<!-- /components -->\nAfter \\1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--markdown", "no.md"], "--markdown no.md: no such file"),
        (
            ["--markdown", "bare.md"],
            "--markdown bare.md: needs a line <!-- components --> and, below it, <!-- /components -->",
        ),
        (["--json", "--markdown", "-"], "--json and --markdown exclude each other: give one"),
        (["--jsn"], "unknown option '--jsn'; did you mean --json?"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bare.md").write_text("nothing\n")
    assert main(["components", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
