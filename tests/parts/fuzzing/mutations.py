"""What the fuzzer does to good input: values that don't belong, wrong keys, hidden code, bytes that lie."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

CANARY = "canary"
"""File in the working folder that no input may make: each piece of code that hides in one would."""
STRANGER = "stranger.py"
"""A module in the working folder, which is on the path: to import it is enough."""
TOUCH = f"touch {CANARY}"
WRITE = f"open('{CANARY}', 'w').close()"

Expect = Literal["either", "accepted", "refused", "said"]
"""What must become of an input; `said` may be accepted, if a message names what is odd."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        call: `cli` and a command line, or a function of `judged_calls` and its arguments. Paths are relative to the
            working folder, where the case's files lie.
        what: what was done, for people.
        files: path -> content; None makes a named pipe.
        copies: path -> seed, a file or folder, that `files` are then laid over.
        names: parts of a message of which a refusal must have one; the names of `files` are added.
        expect: what must become of it.
        online: whether the user asked for something that may be fetched.
    """

    call: tuple[str, ...]
    what: str
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    expect: Expect = "either"
    online: bool = False


class Seeds:
    """The good files of `seeds.build`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> str:
        """Absolute, for what stays as it is."""
        return str(self.folder / name)

    def bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))

    def yaml(self, name: str) -> Any:
        return yaml.safe_load(self.bytes(name))

    def files(self, name: str) -> list[str]:
        """Relative paths of the files in a folder, in order."""
        home = self.folder / name
        return sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())


Maker = Callable[[Seeds, Random], Case]
"""Makes one input; the same random state makes the same."""

# --- values -------------------------------------------------------------------------------------------------------

SMALL_NONSENSE: tuple[Any, ...] = (
    None, True, False, -1, 0, -0.0, 0.5, float("nan"), float("inf"), float("-inf"), 5e-324, "", " ", "x", "-1", "nan",
    "null", "1e3", "é\u0301", "a\nb", "a\x00b", "\ud800", "\u202e", [], {}, [None], [[]], {"": ""}, {"x": {"x": []}},
    [1, 2, 3], ["a", "b"], "/etc/passwd", "/dev/zero", "/", "..", "~/x", "http://127.0.0.1:9/x", "no/such/model", "%s",
    "{}", "${x}", "a:b", "<|im_end|>", "[", "'", "!!python/none",
)  # fmt: skip
LARGE_NONSENSE: tuple[Any, ...] = (
    10**9, -(10**9), 2**31, 2**62, 2**64, 10**30, 1e308, -1e308, 10**400, "9" * 400, "x" * 20_000, "x/" * 3000,
    list(range(3000)), {str(i): i for i in range(3000)},
)  # fmt: skip
WORK = {
    "max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "devices", "num_nodes", "num_workers", "seeds",
    "limit", "num_warmup", "ambiguous_lines", "explicit_lines", "replies_per_emotion", "train", "validation", "test",
    "processes", "max_text_tokens", "max_units", "accumulate_grad_batches", "patience", "noisy_copies",
}  # fmt: skip
"""Keys by which a user may ask for any amount of work."""


def nonsense(random: Random, key: str = "") -> Any:
    """A value that hardly fits; a large one where `key` doesn't say how much work is wanted."""
    return copy.deepcopy(random.choice(SMALL_NONSENSE if key in WORK else SMALL_NONSENSE + LARGE_NONSENSE))


CODE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("os.system", {"command": TOUCH}),
    ("posix.system", {"command": TOUCH}),
    ("subprocess.Popen", {"args": ["touch", CANARY]}),
    ("subprocess.getoutput", {"cmd": TOUCH}),
    ("subprocess.call", {"args": ["touch", CANARY]}),
    ("os.mkdir", {"path": CANARY}),
    ("os.makedirs", {"name": CANARY}),
    ("builtins.open", {"file": CANARY, "mode": "w"}),
    ("io.open", {"file": CANARY, "mode": "w"}),
    ("timeit.timeit", {"stmt": WRITE, "number": 1}),
    ("timeit.Timer", {"stmt": WRITE}),
    ("runpy.run_path", {"path_name": STRANGER}),
    ("runpy.run_module", {"mod_name": "stranger"}),
    ("importlib.import_module", {"name": "stranger"}),
    ("stranger.Anything", {}),
    ("stranger.anything", {}),
    ("logging.FileHandler", {"filename": CANARY}),
    ("zipfile.ZipFile", {"file": CANARY, "mode": "w"}),
    ("sqlite3.connect", {"database": CANARY}),
    ("shelve.open", {"filename": CANARY}),
    ("shutil.copy", {"src": STRANGER, "dst": CANARY}),
    ("numpy.memmap", {"filename": CANARY, "mode": "w+", "shape": [1]}),
    ("torch.hub.load", {"repo_or_dir": ".", "model": "x", "source": "local"}),
    ("torch.load", {"f": "payload.pt", "weights_only": False}),
    ("lightning_s2s.support.files.write_text", {"path": CANARY, "text": ""}),
    ("lightning_s2s.construction.speech.Espeak", {}),
    ("lightning_s2s.construction.chat.ChatServer", {"url": "http://127.0.0.1:9"}),
)  # fmt: skip
"""Class paths with arguments that leave a trace where something builds what they name."""


def code(random: Random) -> dict[str, Any]:
    """Something to be built that must not be."""
    class_path, init_args = random.choice(CODE)
    return {"class_path": class_path, "init_args": dict(init_args)}


# --- trees, as JSON and YAML have them -----------------------------------------------------------------------------

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """A changed tree, what was done, what a refusal may name, and what must become of it."""

    tree: Any
    what: str
    names: tuple[str, ...] = ()
    expect: Expect = "either"


def places(tree: Any, here: Place = ()) -> Iterator[Place]:
    """Every place below the root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*here, key)
        yield from places(value, (*here, key))


def at(tree: Any, place: Place) -> Any:
    """What stands there."""
    for key in place:
        tree = tree[key]
    return tree


def put(tree: Any, place: Place, value: Any) -> Any:
    """A copy of the tree with another value at one place."""
    if not place:
        return value
    tree = copy.deepcopy(tree)
    at(tree, place[:-1])[place[-1]] = value
    return tree


def keys(tree: Any) -> tuple[str, ...]:
    """All keys of a tree that a message may name."""
    found = (place[-1] for place in places(tree))
    return tuple(dict.fromkeys(key for key in found if isinstance(key, str) and len(key) > 1))


def names_of(place: Place) -> tuple[str, ...]:
    """The last two keys that a message may name."""
    keys = [str(key) for key in place if isinstance(key, str) and key not in ("class_path", "init_args")]
    return tuple(keys[-2:])


def said(place: Place) -> str:
    return ".".join(map(str, place)) or "the root"


def misspell(word: str, random: Random) -> str:
    """Near to `word`, and another."""
    i = random.randrange(len(word))
    ways = (word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:], word + "s", word.capitalize(), "x" + word)
    others = [way for way in ways if way and way != word]
    return random.choice(others)


def replace_value(tree: Any, random: Random) -> Change:
    place = random.choice(list(places(tree)))
    value = nonsense(random, names_of(place)[-1] if names_of(place) else "")
    names = (*names_of(place), str(value)[:40], normpath(str(value)[:40]))
    return Change(put(tree, place, value), f"{said(place)} is {repr(value)[:60]}", names)


def remove_key(tree: Any, random: Random) -> Change:
    # Without its configuration a language model has its usual size, which is right, and slow.
    place = random.choice([place for place in places(tree) if place[-1] not in ("init_args", "config")])
    tree = copy.deepcopy(tree)
    del at(tree, place[:-1])[place[-1]]
    return Change(tree, f"without {said(place)}", names_of(place))


def misspell_key(tree: Any, random: Random) -> Change:
    place = random.choice([place for place in places(tree) if isinstance(place[-1], str)])
    wrong = misspell(str(place[-1]), random)
    tree = copy.deepcopy(tree)
    parent = at(tree, place[:-1])
    parent[wrong] = parent.pop(place[-1])
    return Change(tree, f"{said(place)} is called {wrong!r}", (wrong, *names_of(place)))


def foreign_key(tree: Any, random: Random) -> Change:
    homes = [(), *(place for place in places(tree) if isinstance(at(tree, place), dict))]
    home = random.choice(homes)
    key = random.choice(["unheard_of", "trust_remote_code", "class_path", "init_args", "_target_", "", "a.b", "0"])
    changed = put(tree, (*home, key), nonsense(random))
    return Change(changed, f"{said(home)} also has {key!r}", (key or "''", *names_of(home)))


def hide_code(tree: Any, random: Random) -> Change:
    """Code in the place of a value, or beside it in a mapping or list."""
    place, payload = random.choice([(), *places(tree)]), code(random)
    value = at(tree, place)
    shape: Any = random.choice([payload, [payload], {"x": payload}, {"x": [{"y": payload}]}])
    if isinstance(value, dict) and random.random() < 0.7:
        shape = {**value, random.choice(["x", "class_path", "config"]): shape}
    elif isinstance(value, list) and random.random() < 0.7:
        shape = [*value, payload]
    return Change(put(tree, place, shape), f"{payload['class_path']} at {said(place)}", (*names_of(place), "x"))


def nest(tree: Any, random: Random) -> Change:
    place, depth = random.choice(list(places(tree))), random.choice([60, 300])
    value: Any = []
    for _ in range(depth):
        value = [value] if random.random() < 0.5 else {"x": value}
    return Change(put(tree, place, value), f"{said(place)} is {depth} levels deep", names_of(place))


TREE_CHANGES = (replace_value, replace_value, remove_key, misspell_key, foreign_key, hide_code, hide_code, nest)


def change_tree(tree: Any, random: Random) -> Change:
    """One change of a random kind at a random place."""
    return random.choice(TREE_CHANGES)(tree, random)


# --- bytes --------------------------------------------------------------------------------------------------------


def cut(content: bytes, random: Random) -> tuple[bytes, str]:
    end = int(len(content) * random.random() * 0.95)
    return content[:end], f"cut after {end} of {len(content)} bytes"


def flip(content: bytes, random: Random) -> tuple[bytes, str]:
    changed, where = bytearray(content), []
    for _ in range(random.choice([1, 3, 20])):
        where.append(random.randrange(len(changed)))
        changed[where[-1]] = random.randrange(256)
    return bytes(changed), f"other bytes at {where[:3]}"


def flip_start(content: bytes, random: Random) -> tuple[bytes, str]:
    head, what = flip(content[:128], random)
    return head + content[128:], what


def insert(content: bytes, random: Random) -> tuple[bytes, str]:
    place, number = random.randrange(len(content) + 1), random.choice([1, 2, 100])
    return content[:place] + random.randbytes(number) + content[place:], f"{number} bytes more at {place}"


def drop(content: bytes, random: Random) -> tuple[bytes, str]:
    place, number = random.randrange(len(content)), random.choice([1, 2, 100])
    return content[:place] + content[place + number :], f"{number} bytes less at {place}"


def twice(content: bytes, random: Random) -> tuple[bytes, str]:
    return content + content, "twice in one file"


def other_content(content: bytes, random: Random) -> tuple[bytes, str]:
    others = (b"", b"\n", b"\x00" * 100, b"null", b"[]", b"{}", b'"x"', b"PK\x05\x06" + bytes(18))
    other = random.choice((*others, random.randbytes(500)))
    return other, f"replaced by {other[:20]!r}"


BYTE_CHANGES = (cut, flip, flip_start, insert, drop, twice, other_content)


def change_bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    """One change of a random kind."""
    return random.choice(BYTE_CHANGES)(content, random)


def deep_json(random: Random) -> bytes:
    """More levels than a parser that calls itself can take."""
    depth = random.choice([1000, 20_000, 500_000])
    opening, closing = random.choice([(b"[", b"]"), (b'{"x":', b"}")])
    return opening * depth + b"1" + closing * depth
