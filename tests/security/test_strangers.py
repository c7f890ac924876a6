"""Whatever a stranger sends, a model folder, a checkpoint or a configuration: values are taken, code is never run.

`test_loaders.py` walks the package: a new call that could run code fails it until it is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_s2s.checkpoints import stored
from lightning_s2s.checkpoints.lightning_checkpoint import MODEL_KEY, load_checkpoint
from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.checkpoints.stored import build_parts, pack_parts
from lightning_s2s.commands.parser import CommandParser
from lightning_s2s.components.base import PlainValues, check_plain
from lightning_s2s.components.pretrained import build_causal_lm, load_pretrained
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY
from parts.command_line import last_line
from parts.json_files import change
from parts.small_models import build

RUN_BY_IMPORT = "stranger_module"


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A file that appears when code of a stranger runs: by a command, or because `stranger_module` is imported."""
    mark = tmp_path / "it_ran"
    (tmp_path / "path").mkdir()
    source = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef run(**options): pass\nclass Thing: pass\n"
    (tmp_path / "path" / f"{RUN_BY_IMPORT}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "path")
    return mark


def payloads(mark: Path) -> list[dict]:
    """Class paths with arguments that leave the mark, if somebody builds them."""
    return [
        {"class_path": "os.system", "init_args": {"command": f"touch {mark}"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(mark)]}},
        {"class_path": "builtins.eval", "init_args": {"source": f"open({str(mark)!r}, 'w')"}},
        {"class_path": f"{RUN_BY_IMPORT}.Thing", "init_args": {}},
        {"class_path": f"{RUN_BY_IMPORT}.run", "init_args": {"x": 1}},
    ]


@pytest.fixture
def folder(tokenizer_folder, tmp_path) -> Path:
    save_model(build(tokenizer_folder), tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert "config.json: " in str(error.value) and "\n" not in str(error.value)


# --- model folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_a_folder_names_registered_components_alone(folder, trap, number):
    payload = payloads(trap)[number]
    change(folder / "config.json", encoder=payload)
    refused(folder, f"encoder: unknown encoder '{payload['class_path']}'; .*known: .*mel")
    assert not trap.exists()


@pytest.mark.parametrize("number", range(5))
def test_a_class_among_values_is_refused(folder, trap, number):
    payload = payloads(trap)[number]
    change(folder / "config.json", llm__init_args__config={"model_type": "qwen3", "x": {"deep": [payload]}})
    refused(folder, r"llm\.init_args\.config\.x\.deep\.class_path: names a class|config\.x\.deep: names a class")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("slot", "argument", "value"),
    [
        ("encoder", "checkpoint", "openai/whisper-base"),
        ("encoder", "checkpoint", "https://example.org/x.pt"),
        ("encoder", "checkpoint", "/etc"),
        ("encoder", "checkpoint", "../elsewhere"),
        ("encoder", "checkpoint", "link"),
        ("encoder", "checkpoint", True),
        ("encoder", "checkpoint", ["a"]),
        ("llm", "tokenizer", "someone/tokenizer"),
        ("llm", "tokenizer", "~/tokenizer"),
        ("llm", "tokenizer_corpus", "/etc/passwd"),
        ("llm", "checkpoint", "someone/llm"),
        ("vocoder", "checkpoint", "a\0b"),
        ("vocoder", "checkpoint", "x" * 5000),
    ],
)
def test_a_folder_names_nothing_outside_of_itself(folder, slot, argument, value):
    (folder.parent / "elsewhere").mkdir()
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    change(folder / "config.json", **{f"{slot}__init_args__{argument}": value})
    refused(folder, rf"{slot}\.init_args\.{argument}: got .*--trust_sources")


def test_a_default_that_would_be_fetched_is_refused_too(folder):
    change(folder / "config.json", encoder={"class_path": "whisper", "init_args": {}})
    refused(folder, r"encoder\.init_args\.checkpoint: got 'openai/whisper-base', the default; ")
    change(folder / "config.json", encoder={"class_path": "ssl", "init_args": {"layers": -1}})
    refused(folder, "encoder.init_args.checkpoint: got 'facebook/hubert-large-ll60k', the default; ")


def test_what_lies_in_the_folder_is_taken_wherever_one_stands(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "words").mkdir()
    for path in folder.glob("tokenizer*"):
        path.rename(folder / "words" / path.name)
    for path in folder.glob("*.jinja"):
        path.rename(folder / "words" / path.name)
    change(folder / "config.json", llm__init_args__tokenizer="words")
    assert load_model("model").llm.vocabulary == 262 + 1


def test_trust_comes_from_the_keyboard(folder, tokenizer_folder, run, tmp_path):
    change(folder / "config.json", llm__init_args__tokenizer=str(tokenizer_folder))
    refused(folder, "llm.init_args.tokenizer: got ")
    assert load_model(folder, trust_sources=True).llm.vocabulary == 263
    code, _, err = run("consolidate", folder, tmp_path / "out")
    assert code == 1, err


def test_all_parts_are_checked_before_one_is_built(folder, monkeypatch):
    built = []
    monkeypatch.setattr(stored, "_build", lambda *arguments: built.append(arguments))
    change(folder / "config.json", vocoder__init_args__levls=[8])
    refused(folder, "vocoder.init_args: unknown argument of vocoder pocket 'levls'; did you mean levels?")
    assert built == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attn_implementation": "kernels-community/flash-attn2"}, "attn_implementation: got 'kernels-community/"),
        ({"attn_implementation": "me/code@main:run"}, "kernels of the hub are code, which is not loaded"),
        ({"_attn_implementation": "me/code"}, "kernels of the hub are code, which is not loaded"),
        ({"attn_implementation": "paged|eager"}, "allowed: eager, sdpa, flex_attention, flash_attention_2"),
        ({"attn_implementation": "flash_attention_2"}, "needs the package flash_attn"),
        ({"experts_implementation": "me/code"}, "experts_implementation: got 'me/code'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: is not taken"),
        ({"use_pretrained_backbone": True, "backbone": "resnet50"}, "use_pretrained_backbone: is not taken"),
        ({"to_diff_dict": 1}, "unknown key 'to_diff_dict'"),
    ],
)
def test_configurations_of_transformers_bring_no_code(folder, config, message):
    settings = json.loads((folder / "config.json").read_text())["llm"]["init_args"]["config"]
    change(folder / "config.json", llm__init_args__config=settings | config)
    refused(folder, message)
    with pytest.raises(ValueError, match=message):
        build_causal_lm(settings | config)


def test_code_that_comes_with_a_checkpoint_is_not_run(tokenizer_folder, tmp_path, trap, caplog):
    model = build(tokenizer_folder).llm.model
    model.save_pretrained(tmp_path / "llm")
    (tmp_path / "llm" / "code.py").write_text((tmp_path / "path" / f"{RUN_BY_IMPORT}.py").read_text())
    own = json.loads((tmp_path / "llm" / "config.json").read_text())
    auto_map = {"AutoConfig": "code.Thing", "AutoModelForCausalLM": "code.Thing"}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(own | {"auto_map": auto_map}))
    loaded = load_pretrained("AutoModelForCausalLM", str(tmp_path / "llm"))
    assert type(loaded) is type(model)  # transformers has this kind itself
    assert "its config.json names code of its own (auto_map), which is not run" in caplog.text

    (tmp_path / "llm" / "config.json").write_text(json.dumps(own | {"auto_map": auto_map, "model_type": "brand_new"}))
    with pytest.raises(ValueError, match="llm: can only be loaded by code that comes with it, which is not run"):
        load_pretrained("AutoModelForCausalLM", str(tmp_path / "llm"))
    assert not trap.exists()


# --- s3prl -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        (
            {"upstream": "hubert_url", "checkpoint": "http://127.0.0.1:9/x.pt", "trust_checkpoint": True},
            "checkpoint: got 'http://127.0.0.1:9/x.pt'; what a file names beyond its folder",
        ),
        ({"upstream": "hubert_local", "config": {}, "trust_checkpoint": True}, "trust_checkpoint: got True"),
        ({"upstream": "wavlm_base_plus"}, "upstream: got 'wavlm_base_plus', for which s3prl fetches or unpickles"),
        ({"upstream": "fbank", "options": {"feat_config": "evil.yaml"}}, "options: got .*name files that s3prl reads"),
        (
            {"upstream": "hubert_local", "config": {"model_cfg": {"conv_feature_layers": "__import__('os').abort()"}}},
            "the text .*abort.* is code, which s3prl could run",
        ),
        (
            {"upstream": "hubert_local", "config": {"a": ["[0] * 9000 * 9000 * 9000"]}},
            "is code, which s3prl could run",
        ),
    ],
)
def test_an_s3prl_upstream_is_not_trusted_by_who_sends_it(folder, init_args, message):
    pytest.importorskip("s3prl")
    change(folder / "config.json", encoder={"class_path": "s3prl", "init_args": init_args})
    refused(folder, message)


def test_texts_of_a_checkpoint_that_s3prl_evaluates(tmp_path):
    pytest.importorskip("s3prl")
    from lightning_s2s.components.encoders.s3prl import S3prlEncoder, refuse_expressions

    harmless = [
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "/a/path b",
        "a.b",
        "(1, -2)",
        "audio-task",
        "",
        "é",
    ]
    refuse_expressions({"x": harmless, "y": (1.5, None)}, "it")
    for code in ("f()", " f()", "[x for x in y]", "lambda: 1", "a[0]", "9**9**9", "f'{x}'"):
        with pytest.raises(ValueError, match="it: the text .* is code"):
            refuse_expressions({"x": [{"y": code}]}, "it")
    torch.save({"config": {"feat_type": "fbank(open('x', 'w'))"}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: the text .*trust_checkpoint: true"):
        S3prlEncoder("apc_local", str(tmp_path / "a.ckpt"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(model: SpeechToSpeechModel, path: Path, **changes) -> Path:
    """What `fit` writes of a model, and `changes`."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, MODEL_KEY: pack_parts(model)} | changes, path)
    return path


def test_a_checkpoint_is_opened_by_its_own_description(tokenizer_folder, tmp_path):
    model = build(tokenizer_folder)
    again = load_checkpoint(checkpoint(model, tmp_path / "a.ckpt"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("number", range(5))
def test_a_checkpoint_of_plain_values_runs_nothing(tokenizer_folder, tmp_path, trap, run, number):
    model, payload = build(tokenizer_folder), payloads(trap)[number]
    packed = pack_parts(model)
    inside = {"class_path": "causal", "init_args": {"config": {"x": payload}}}
    stage = {"class_path": "lightning_s2s.stages.EmpatheticInstructionTuning", "init_args": {"llm": inside}}
    cases = [
        {CONFIGURATION_KEY: stage},
        {CONFIGURATION_KEY: {**payload, "init_args": {**payload["init_args"], "llm": payload}}},
        {CONFIGURATION_KEY: stage, MODEL_KEY: None},
        {CONFIGURATION_KEY: {"class_path": "x", "init_args": {"encoder": payload}}},
        {MODEL_KEY: {**packed, "config": {**packed["config"], "encoder": payload}}},
        {MODEL_KEY: {**packed, "config": {**packed["config"], "llm": inside}}},
    ]
    for case in cases:
        path = checkpoint(model, tmp_path / "a.ckpt", **case)
        for command in (("consolidate", path, tmp_path / "out"), ("convert", "--to", "opens2s", path, tmp_path / "o")):
            code, _, err = run(*command)
            assert (code, err.count("\n")) == (1, 1) and err.startswith(f"error: {path}: "), err
        assert not trap.exists()


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/lightning_s2s_out.txt", "a/../../out.txt", ""])
def test_files_of_a_checkpoint_stay_inside(tokenizer_folder, tmp_path, name):
    model = build(tokenizer_folder)
    packed = pack_parts(model)
    path = checkpoint(model, tmp_path / "a.ckpt", **{MODEL_KEY: {**packed, "files": {**packed["files"], name: b"x"}}})
    with pytest.raises(ValueError, match="a.ckpt: .*which can't be used"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "packed", [None, 3, {}, {"config": {}}, {"config": {}, "files": []}, {"config": {}, "files": {}}, {"files": {}}]
)
def test_a_checkpoint_without_a_usable_description(tokenizer_folder, tmp_path, packed):
    path = checkpoint(build(tokenizer_folder), tmp_path / "a.ckpt", **{MODEL_KEY: packed})
    with pytest.raises(ValueError, match=r"a\.ckpt: ") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


# --- configurations at the keyboard ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_values_of_a_configuration_stay_values(run, configuration, trap, tmp_path, number):
    """jsonargparse would build whatever class stands in a mapping."""
    payload = json.dumps(payloads(trap)[number])
    for command in ("plan", "fit") if number == 4 else ("plan",):
        code, _, err = run(command, "--config", configuration, "--model.llm.init_args.config.x", payload)
        assert code in (1, 2) and last_line(err).startswith("error: "), err
        assert "config" in last_line(err)
    vocoder = (
        "--vocoder",
        "hf_codec",
        "--vocoder.config",
        json.dumps({"model_type": "mimi", "x": json.loads(payload)}),
    )
    (tmp_path / "in.jsonl").write_text("")
    code, _, err = run("units", *vocoder, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert code in (1, 2) and "config" in last_line(err), err
    assert not trap.exists()


def test_plain_values_are_read_as_yaml_has_them():
    class Part:
        def __init__(self, config: PlainValues | None = None):
            self.config = config

    parser = CommandParser(program="part")
    parser.add_class_arguments(Part, "part")
    whole = "{a: 1, b: 2.5, c: x, d: [1, {class_path: os.system}], e: {f: null}, g: true}"
    for options, expected in (
        (["--part.config.size", "16"], {"size": 16}),
        (["--part.config.size", "1e-6", "--part.config.name", "sdpa"], {"size": 1e-6, "name": "sdpa"}),
        (["--part.config", whole], yaml.safe_load(whole)),
    ):
        assert parser.instantiate(parser.parse_args(options)).part.config == expected


def test_plain_values():
    check_plain({"a": [1, 2.5, None, True, ("x",)]}, "it")
    for value, message in (
        ({"a": {1: 2}}, "it.a: the key 1 must be a text"),
        ({"a": [{1, 2}]}, "it.a: holds set; plain values are allowed"),
        ({"a": {"class_path": "x"}}, "it.a: names a class, 'x'"),
        ({"a": Path("x")}, "it.a: holds PosixPath"),
    ):
        with pytest.raises(ValueError, match=message):
            check_plain(value, "it")
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested more than 64 levels deep"):
        check_plain(deep, "it")


def test_build_parts_takes_what_pack_parts_gives(tokenizer_folder, tmp_path):
    model = build(tokenizer_folder)
    packed = pack_parts(model)
    assert json.loads(json.dumps(packed["config"])) == json.loads(json.dumps(packed["config"], default=str))
    for name, content in packed["files"].items():
        (tmp_path / name).write_bytes(content)
    parts = build_parts(packed["config"], tmp_path / "config.json", tmp_path)
    assert {slot: type(part) for slot, part in parts.items()} == {
        slot: type(getattr(model, slot)) for slot in ("encoder", "adapter", "llm", "speech_decoder", "vocoder")
    }
