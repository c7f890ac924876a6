"""Every call of the package by which a file could run code is known: a new one fails until it is looked at."""

from __future__ import annotations

import ast
import inspect

from lightning_s2s.components.registry import REGISTRY
from parts.package_files import FILES

LOADERS = {
    # Plain values and tensors alone, each by `weights_only=True`:
    "torch.load": {"support.plain", "scale.plain_reader", "components.weights", "components.encoders.s3prl"},
    "torch.hub.load_state_dict_from_url": {"components.vocoders.encodec"},
    # Classes of an index alone:
    "_IndexUnpickler": {"scale.plain_reader"},
    # What this program sent to its own workers:
    "pickle.loads": {"construction.running.ray"},
    # The one door to transformers, `trust_remote_code=False`:
    "from_pretrained": {"components.pretrained"},
    "from_config": {
        "components.pretrained", "components.llms.causal", "checkpoints.opens2s",
        "components.speech_decoders.interleaved",
    },
    "importlib.import_module": {"components.registry", "data", "commands.messages", "commands.parser"},
    # Parsers that read what a user wrote:
    "instantiate": {"commands.parser"},
}  # fmt: skip
"""Calls by which code could be run that a file brings -> modules that call them, each looked at."""
DANGEROUS = {
    "exec", "__import__", "builtins.eval", "os.system", "pickle.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "joblib.load", "dill.loads", "runpy.run_path",
}  # fmt: skip


def calls_of(tree: ast.AST):
    """Dotted name and node of each call, by the full name and by its last part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = ast.unparse(node.func)
            yield name, node
            if "." in name:
                yield name.rpartition(".")[2], node


def test_every_loader_is_known():
    for module, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in calls_of(tree):
            runs = name in DANGEROUS or (isinstance(node.func, ast.Name) and name == "eval")
            assert not runs, f"{module}, line {node.lineno}: {name}"
            if name in LOADERS:
                assert module in LOADERS[name], f"{module}, line {node.lineno}: {name} is not in LOADERS"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) != ("trust_remote_code", "True"), f"{module}, line {node.lineno}"
                assert (keyword.arg, value) != ("allow_pickle", "True"), f"{module}, line {node.lineno}"
            if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{module}, line {node.lineno}: weights_only"


def test_every_component_says_what_it_loads():
    """A parameter whose name sounds like a file, a hub id or trust is among `sources` and `trusts`."""
    REGISTRY.load()
    for registry in REGISTRY:
        for name in registry.names():
            cls = registry.get(name)
            for parameter in inspect.signature(cls.__init__).parameters:
                if any(
                    word in parameter for word in ("checkpoint", "pretrained", "path", "file", "folder", "url", "hub_")
                ):
                    assert parameter in (*cls.sources, *cls.trusts), f"{registry.kind} {name}: {parameter}"
                if "trust" in parameter:
                    assert parameter in cls.trusts, f"{registry.kind} {name}: {parameter}"
