"""The registry: registering, lookup, listing, short names in a parser, plug-ins."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lightning_s2s.components.contracts import AudioEncoder
from lightning_s2s.components.registry import (
    ENCODERS,
    FACTS,
    REGISTRY,
    SLOTS,
    VOCODERS,
    ComponentRegistries,
    Registry,
)
from lightning_s2s.support import extras
from lightning_s2s.support.wording import near_names, unknown_name

BUILT_IN = {
    ("encoder", "mel"), ("encoder", "qwen2_audio"), ("encoder", "whisper"), ("adapter", "conv"), ("llm", "causal"),
    ("speech_decoder", "interleaved"), ("vocoder", "glm4_voice"), ("vocoder", "pocket"),
}  # fmt: skip
ROLES = {
    "encoder": "Encoder", "adapter": "Adapter", "llm": "LanguageModel", "speech_decoder": "SpeechDecoder",
    "vocoder": "Vocoder",
}  # fmt: skip

FAKES = Registry("encoder", "encoders", "AudioEncoder")


@FAKES.register("plain")
class PlainEncoder(AudioEncoder):
    """A plain one.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int = 4, checkpoint: str | None = None):
        super().__init__()
        self.width, self.checkpoint = width, checkpoint

    def forward(self, waveform, lengths):
        return waveform, lengths


@FAKES.register("fancy")
class FancyEncoder(PlainEncoder):
    """One that passes its options on."""

    def __init__(self, shine: float = 0.5, **options: Any):
        super().__init__(**options)
        self.shine = shine


class Holder:
    """Something with a slot."""

    def __init__(self, encoder: AudioEncoder):
        self.encoder = encoder


def parse(*arguments: str) -> AudioEncoder:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder)
    return parser.instantiate(parser.parse_args(list(arguments))).encoder


def test_built_in_components_are_listed_with_a_summary():
    infos = REGISTRY.list()
    assert {(info.kind, info.name) for info in infos} >= BUILT_IN
    assert all(len(info.summary) > 10 for info in infos)


def test_the_catalogue_says_what_the_classes_say():
    for registry in REGISTRY:
        for info in REGISTRY.list():
            if info.kind == registry.kind and info.is_built_in:
                cls = registry.get(info.name)
                assert {fact: getattr(info, fact) for fact in FACTS} == {fact: getattr(cls, fact) for fact in FACTS}
                assert info.extra in {"", *extras.extras()}


def test_the_slots_are_in_one_table():
    assert list(SLOTS) == ["encoder", "adapter", "llm", "speech_decoder", "vocoder"] == list(ROLES)
    assert list(SLOTS.values()) == list(REGISTRY)


def test_a_components_file_is_its_name_and_its_class_name_tells_the_role():
    REGISTRY.load()
    for registry in REGISTRY:
        for info in REGISTRY.list():
            if info.kind == registry.kind and info.module.startswith("lightning_s2s."):
                assert info.module == f"lightning_s2s.components.{registry.folder}.{info.name}"
                expected = info.name.replace("_", "") + ROLES[info.kind].lower()
                assert registry.get(info.name).__name__.lower() == expected
                assert registry.name_of(registry.get(info.name)) == info.name


def test_an_unknown_name_is_refused_with_near_names_and_all_names():
    with pytest.raises(ValueError) as error:
        VOCODERS.get("pockt")
    known = ", ".join(VOCODERS.names())
    assert str(error.value) == f"unknown vocoder 'pockt'; did you mean pocket? known: {known}"


def test_wording_of_unknown_names():
    assert unknown_name("colour", "rad", ["blue", "red"]) == "unknown colour 'rad'; did you mean red? known: blue, red"
    assert unknown_name("colour", "xyz", ["red", "blue"]) == "unknown colour 'xyz'; known: blue, red"
    assert unknown_name("colour", "red", []) == "unknown colour 'red'; known: none"


def test_near_names_are_the_most_alike():
    assert near_names("whispr", ["whisper", "mel", "wisp"]) == "whisper"
    assert near_names("cat", ["car", "can", "dog"]) == "can or car"
    assert near_names("cat", ["dog"]) == ""
    assert near_names("cat", []) == ""


def test_names_that_cannot_be_registered():
    registry = Registry("encoder", "encoders", "AudioEncoder")
    registry.register("taken")(PlainEncoder)
    registry.register("taken")(PlainEncoder)  # the same class again, as after a reload, is no clash
    with pytest.raises(ValueError, match="'taken' is already registered by .*PlainEncoder; .*FancyEncoder needs"):
        registry.register("taken")(FancyEncoder)
    with pytest.raises(ValueError, match="encoder name 'my-encoder': must be a Python identifier"):
        registry.register("my-encoder")(PlainEncoder)
    with pytest.raises(ValueError, match="encoder 'holder': Holder must extend AudioEncoder"):
        registry.register("holder")(Holder)
    with pytest.raises(ValueError, match="already defines 'parse'; register PlainEncoder under another name"):
        registry.register("parse")(PlainEncoder)
    with pytest.raises(ValueError, match="Holder is no registered encoder"):
        registry.name_of(Holder)


def test_a_short_name_builds_the_class_itself():
    encoder = parse("--encoder", "plain", "--encoder.width", "7")
    assert type(encoder) is PlainEncoder
    assert (encoder.width, encoder.checkpoint) == (7, None)


def test_a_class_path_and_a_mapping_work_too():
    assert type(parse("--encoder", f"{__name__}.PlainEncoder")) is PlainEncoder
    encoder = parse("--encoder", "{class_path: fancy, init_args: {shine: 0.9}}")
    assert (type(encoder), encoder.shine) == (FancyEncoder, 0.9)


def test_options_that_a_component_passes_on_to_its_base_are_known():
    encoder = parse("--encoder", "fancy", "--encoder.checkpoint", "somewhere", "--encoder.shine", "0.25")
    assert (type(encoder), encoder.checkpoint, encoder.shine) == (FancyEncoder, "somewhere", 0.25)


@pytest.fixture
def installed_plug_ins(tmp_path, monkeypatch):
    """Two installed packages with entry points: one with an encoder, one that fails to import."""
    package = tmp_path / "plugged_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise_if_listed = True\n")
    (package / "parts.py").write_text(
        "from lightning_s2s.components.contracts import AudioEncoder\n"
        "from lightning_s2s.components.registry import ENCODERS\n\n\n"
        '@ENCODERS.register("plugged")\nclass PluggedEncoder(AudioEncoder):\n'
        '    """From somewhere else."""\n\n'
        "    def forward(self, waveform, lengths):\n        return waveform, lengths\n"
    )
    (tmp_path / "broken_plug_in.py").write_text("import a_package_that_is_missing\n")
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lightning_s2s.components]\ngood = plugged_package.parts\nbad = broken_plug_in\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    ENCODERS._classes.pop("plugged", None)
    for name in [name for name in sys.modules if name.startswith("plugged_package")]:
        del sys.modules[name]


def test_plug_ins_are_listed_and_a_broken_one_says_why(installed_plug_ins):
    registries = ComponentRegistries(*REGISTRY)
    with pytest.warns(UserWarning, match="plug-in bad"):
        infos = {info.name: info for info in registries.list()}
    assert (infos["plugged"].kind, infos["plugged"].summary) == ("encoder", "From somewhere else.")
    assert (infos["bad"].kind, infos["bad"].module) == ("plug-in", "broken_plug_in")
    assert "can't be loaded: ModuleNotFoundError" in infos["bad"].summary


def test_a_plug_in_is_loaded_and_a_broken_one_is_named(installed_plug_ins):
    registries = ComponentRegistries(*REGISTRY)
    with pytest.warns(UserWarning, match="plug-in bad .broken_plug_in. can't be loaded: .*a_package_that_is_missing"):
        registries.load()
    assert ENCODERS.get("plugged").__name__ == "PluggedEncoder"
    assert type(parse("--encoder", "plugged")).__name__ == "PluggedEncoder"
