"""Model folders and tokenizers, spoilt."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from parts.fuzzing.checkpoint_inputs import pickled
from parts.fuzzing.mutations import (
    CANARY,
    STRANGER,
    TOUCH,
    Case,
    Expect,
    Seeds,
    change_bytes,
    change_tree,
    deep_json,
    nonsense,
    places,
    put,
)

MODELING = f"open({CANARY!r}, 'w').close()\nclass Config: ...\nclass Model: ...\nclass Tokenizer: ...\n".encode()
STRANGERS_CODE = {name: MODELING for name in ("modeling.py", "configuration.py", "tokenization.py")}


def _dump(tree: Any) -> bytes:
    return json.dumps(tree, indent=1).encode()


# --- model folders ------------------------------------------------------------------------------------------------


def _folder(
    seeds: Seeds, random: Random, files: dict[str, bytes], what: str, names: tuple[str, ...] = (),
    expect: Expect = "either", seed: str = "run/model",
) -> Case:  # fmt: skip
    """A command that loads the folder `model`, which is a copy of a good one but for `files`."""
    sound = seeds.path("sounds/speech.wav")
    calls = [("cli", "respond", "model", sound, "--greedy", "--no-audio")] * 3
    calls.append(("cli", "convert", "--to", "opens2s", "model", "out"))
    if seed == "opens2s":
        calls.append(("cli", "convert", "--from", "opens2s", "model", "out"))
    else:
        calls.append(("cli", "evaluate", "answers", "--config", seeds.path("answers.yaml"), "--model", "model"))
        calls.append(("cli", "fit", "--config", seeds.path("stage.yaml"), "--model.init_from", "model"))
    call = random.choice(calls)
    if "--to" in call and seed != "opens2s":
        names = (*names, "encoder is mel")  # the small model fits no published layout
    laid = {f"model/{name}": content for name, content in files.items()}
    return Case(call, f"{seed}: {what}", laid, {"model": seed}, names=(*names, *files), expect=expect)


def changed_config(seeds: Seeds, random: Random) -> Case:
    seed = random.choice(["run/model", "run/model", "opens2s"])
    change = change_tree(seeds.json(f"{seed}/config.json"), random)
    files = {"config.json": _dump(change.tree)}
    return _folder(seeds, random, files, f"config.json: {change.what}", change.names, change.expect, seed)


def code_in_config(seeds: Seeds, random: Random) -> Case:
    """Keys and places by which transformers, peft or this package could be brought to run or fetch something."""
    tree = seeds.json("run/model/config.json")
    homes = [(), *(place for place in places(tree) if place[-1] in ("init_args", "config"))]
    home = random.choice(homes)
    key, value = random.choice([
        ("auto_map", {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}),
        ("auto_map", {"AutoModel": "someone/something--modeling.Model"}),
        ("trust_remote_code", True), ("trust_checkpoint", True),
        ("custom_pipelines", {"x": {"impl": "modeling.Model"}}),
        ("attn_implementation", "kernels-community/flash-attn"), ("_attn_implementation", "someone/kernel:forward"),
        ("attn_implementation", "flash_attention_2"), ("experts_implementation", "someone/kernel"),
        ("quantization_config", {"quant_method": "bitsandbytes"}), ("model_type", "stranger"), ("_name_or_path", "a/b"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}), ("checkpoint", "someone/something"),
        ("checkpoint", "http://127.0.0.1:9/x.pt"), ("checkpoint", "/etc"), ("checkpoint", "../.."), ("checkpoint", "."),
        ("checkpoint", STRANGER), ("tokenizer", "someone/something"), ("tokenizer", "/etc"), ("tokenizer", ".."),
        ("tokenizer_corpus", "/etc/passwd"), ("lora", {"init_lora_weights": "eva"}),
        ("class_path", "stranger.Anything"),
        ("activation_function", "stranger.anything"), ("hidden_act", "os.system"), ("dtype", "os.system"),
    ])  # fmt: skip
    changed = put(tree, (*home, key), value)
    files = {"config.json": _dump(changed), **STRANGERS_CODE}
    return _folder(seeds, random, files, f"{'.'.join(map(str, home))} has {key}: {value}", (key, *map(str, home[:1])))


def other_component(seeds: Seeds, random: Random) -> Case:
    """Components that could fetch or unpickle, with what says from where."""
    tree = seeds.json("run/model/config.json")
    slot, class_path, init_args = random.choice([
        ("encoder", "s3prl", {
            "upstream": "hubert_url", "checkpoint": "http://127.0.0.1:9/x.pt", "trust_checkpoint": True,
        }),
        ("encoder", "s3prl", {"upstream": "hubert_local", "checkpoint": "payload.pt", "trust_checkpoint": True}),
        ("encoder", "s3prl", {"upstream": "wav2vec2_custom", "checkpoint": "model/payload.pt"}),
        ("encoder", "s3prl", {"upstream": "customized_upstream"}), ("encoder", "s3prl", {"upstream": "os.system"}),
        ("encoder", "whisper", {"checkpoint": "someone/whisper"}), ("encoder", "whisper", {"checkpoint": "/etc"}),
        ("encoder", "ssl", {"checkpoint": "someone/hubert"}), ("encoder", "qwen2_audio", {"checkpoint": "a/b"}),
        ("llm", "causal", {"checkpoint": "someone/llm"}), ("llm", "causal", {"checkpoint": "."}),
        ("vocoder", "glm4_voice", {"decoder": "model"}),
        ("vocoder", "unit_hifigan", {"checkpoint": "model/payload.pt"}),
        ("vocoder", "encodec", {"checkpoint": "payload.pt"}), ("vocoder", "encodec", {}), ("vocoder", "hf_codec", {}),
        ("vocoder", "hf_codec", {"checkpoint": "someone/mimi"}), ("vocoder", "pocket", {"checkpoint": "/etc"}),
        ("encoder", "stranger.Anything", {}), ("adapter", "os.system", {"command": TOUCH}),
        ("vocoder", "subprocess.Popen", {"args": ["touch", CANARY]}),
        ("encoder", "lightning_s2s.components.encoders.mel.MelEncoder", {}),
    ])  # fmt: skip
    tree[slot] = {"class_path": class_path, "init_args": init_args}
    bomb = pickled(random)
    files = {"config.json": _dump(tree), "payload.pt": bomb, "flow.pt": bomb, "hift.pt": bomb,
             "config.yaml": b"x: !!python/object/apply:os.system [touch canary]\n"}  # fmt: skip
    what = f"{slot} is {class_path} {init_args}"
    return _folder(seeds, random, files, what, (slot, class_path, *init_args, "s3prl", "encodec"))


def changed_weights(seeds: Seeds, random: Random) -> Case:
    seed = random.choice(["run/model", "opens2s"])
    name = "model.safetensors"
    content = seeds.bytes(f"{seed}/{name}")
    if random.random() < 0.4:
        changed, what = change_bytes(content, random)
    else:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        change = change_tree(header, random)
        text = _dump(change.tree)
        size, what = random.choice([len(text)] * 4 + [0, 2**62, 2**64 - 1, 10**8]), change.what
        changed = struct.pack("<Q", size) + text + content[8 + struct.unpack("<Q", content[:8])[0] :]
    return _folder(seeds, random, {name: changed}, f"{name}: {what}", seed=seed)


def other_files(seeds: Seeds, random: Random) -> Case:
    """Files that a loader might prefer, and those of a published folder."""
    elsewhere = random.choice(["../secret", "/etc/passwd", "http://127.0.0.1:9/x", "", "."])
    index = {"metadata": {}, "weight_map": {"llm.x": elsewhere}}
    name, content = random.choice([
        ("model.safetensors.index.json", _dump(index)), ("model.safetensors.index.json", deep_json(random)),
        ("pytorch_model.bin", pickled(random)), ("model.safetensors", pickled(random)),
        ("adapter_config.json", _dump({"peft_type": "LORA", "auto_mapping": {"parent_library": "stranger"}})),
        ("generation_config.json", _dump(nonsense(random))), ("preprocessor_config.json", _dump(nonsense(random))),
        ("config.json", deep_json(random)), ("config.json", b"\xff\xfe{}"), ("config.json", b'{"format": 1e999}'),
        ("config.json", b'{"a": ' + b"9" * 10_000 + b"}"), ("processor_config.json", _dump({"auto_map": {"x": "y.Z"}})),
    ])  # fmt: skip
    seed = random.choice(["run/model", "opens2s"])
    return _folder(seeds, random, {name: content, **STRANGERS_CODE}, f"with {name} {content[:40]!r}", seed=seed)


def spoilt_file(seeds: Seeds, random: Random) -> Case:
    seed = random.choice(["run/model", "opens2s"])
    name = random.choice([file for file in seeds.files(seed) if seeds.bytes(f"{seed}/{file}")])
    content, what = change_bytes(seeds.bytes(f"{seed}/{name}"), random)
    return _folder(seeds, random, {name: content}, f"{name}: {what}", seed=seed)


FOLDERS = (
    changed_config, changed_config, changed_config, code_in_config, code_in_config, other_component, changed_weights,
    other_files, spoilt_file,
)  # fmt: skip

# --- tokenizers ---------------------------------------------------------------------------------------------------

TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{{ 'x'.__class__.__mro__ }}",
    f"{{{{ cycler.__init__.__globals__.os.system('{TOUCH}') }}}}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "{% include '/etc/passwd' %}", "{% if %}", "{{ x.y.z }}", "", "{{ 1 // 0 }}",
    "{% set x = namespace(v='x') %}{% for i in range(40) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}", "no field",
    "{{ raise_exception('no') }}", "{{ '%1000000000d' % 1 }}", "{{ [1] * 10**9 }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ '{0.__class__}'.format(x) }}", "{{ 2 ** 2 ** 40 }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{% extends x %}", "{{ lipsum.__globals__ }}",
    "{{ ''.center(10**10) }}",
    "{{ dict(a=1).__class__ }}", "{% break %}", "{% import 'os' as os %}", "{{" * 3000, "{% if 1 %}" * 3000, "\x00",
)  # fmt: skip


def _tokenizer(seeds: Seeds, random: Random, files: dict[str, bytes], what: str, names: tuple[str, ...] = ()) -> Case:
    """A stage with the tokenizer of a folder, or a model with its own."""
    if random.random() < 0.5:
        return _folder(seeds, random, files, what, names)
    laid = {f"tokens/{name}": content for name, content in files.items()}
    call = ("cli", "fit", "--config", seeds.path("stage.yaml"), "--model.llm.tokenizer", "tokens")
    return Case(call, f"tokenizer: {what}", laid, {"tokens": "tokenizer"}, names=(*names, *files, "tokens"))


def changed_tokenizer(seeds: Seeds, random: Random) -> Case:
    name = random.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    change = change_tree(seeds.json(f"tokenizer/{name}"), random)
    return _tokenizer(seeds, random, {name: _dump(change.tree)}, f"{name}: {change.what}", change.names)


def spoilt_tokenizer(seeds: Seeds, random: Random) -> Case:
    name = random.choice(seeds.files("tokenizer"))
    if random.random() < 0.3:
        content, what = deep_json(random), "deep"
    else:
        content, what = change_bytes(seeds.bytes(f"tokenizer/{name}"), random)
    return _tokenizer(seeds, random, {name: content}, f"{name}: {what}")


def code_in_tokenizer(seeds: Seeds, random: Random) -> Case:
    config = seeds.json("tokenizer/tokenizer_config.json")
    key, value = random.choice([
        ("auto_map", {"AutoTokenizer": ["tokenization.Tokenizer", None]}), ("tokenizer_class", "stranger.Anything"),
        ("auto_map", {"AutoTokenizer": ["someone/something--tokenization.Tokenizer", None]}), ("name_or_path", "a/b"),
        ("tokenizer_class", "BertTokenizer"), ("tokenizer_class", "PreTrainedTokenizer"), ("vocab_file", "/etc/passwd"),
        ("tokenizer_file", "/etc/passwd"), ("tokenizer_file", "http://127.0.0.1:9/x"), ("processor_class", "os.system"),
        ("model_max_length", -1), ("pad_token", {"__type": "AddedToken", "content": 3}), ("eos_token", ["x"]),
        ("added_tokens_decoder", {"99999999999": {"content": "x"}}), ("added_tokens_decoder", {"-1": {"content": "x"}}),
        ("extra_special_tokens", {"self": "x"}), ("chat_template", {"default": "{{ 1 }}"}), ("backend", "os.system"),
        ("chat_template", [{"name": "default", "template": "{{ 1 }}"}]), ("chat_template", 3), ("is_local", "x"),
    ])  # fmt: skip
    files = {"tokenizer_config.json": _dump({**config, key: value}), **STRANGERS_CODE}
    return _tokenizer(seeds, random, files, f"{key}: {value}", (key,))


def odd_template(seeds: Seeds, random: Random) -> Case:
    template = random.choice(TEMPLATES)
    files = {"chat_template.jinja": template.encode()}
    return _tokenizer(seeds, random, files, f"template {template[:60]!r}", ("template",))


def odd_vocabulary(seeds: Seeds, random: Random) -> Case:
    tree = seeds.json("tokenizer/tokenizer.json")
    vocabulary = tree["model"]["vocab"]
    ways = ["huge ids", "negative ids", "equal ids", "missing bytes", "300,000 tokens", "merges", "types"]
    way = random.choice(ways)
    if way == "huge ids":
        vocabulary["x" * 9] = random.choice([2**31, 2**32 - 1, 2**32, 2**63, 10**12])
    elif way == "negative ids":
        vocabulary["x" * 9] = -1
    elif way == "equal ids":
        tree["model"]["vocab"] = dict.fromkeys(vocabulary, 7)
    elif way == "missing bytes":
        tree["model"]["vocab"] = dict(list(vocabulary.items())[:40])
    elif way == "300,000 tokens":
        tree["model"]["vocab"] = {**vocabulary, **{f"token{i}": 300 + i for i in range(300_000)}}
    elif way == "merges":
        tree["model"]["merges"] = [["nothing", "here"], ["x", "y"]] * 3
    else:
        tree["model"]["vocab"] = random.choice([[], {}, None, [["a", 1.0]], {"a": "b"}, 3])
    return _tokenizer(seeds, random, {"tokenizer.json": _dump(tree)}, f"tokenizer.json with {way}", ("vocab", "merges"))


TOKENIZERS = (changed_tokenizer, changed_tokenizer, spoilt_tokenizer, code_in_tokenizer, odd_template, odd_vocabulary)
