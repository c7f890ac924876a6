"""What bad input raises becomes one line that names the file; JSON and YAML are bounded."""

from __future__ import annotations

import json
import zlib

import pytest
import yaml

from lightning_s2s.support import reading as module
from lightning_s2s.support.extras import MissingPackageError
from lightning_s2s.support.reading import InputError, parse_yaml, read_json, read_yaml, reading

NAMES = list(zip("bcdefghijk", "abcdefghij", strict=True))
BILLION_LAUGHS = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for name, before in NAMES
)
MERGED_LAUGHS = "a: &a {k: 1, l: 2}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}" for name, before in NAMES
)
START = "x.json: not a readable tokenizer"


def raised(error: BaseException, source: str = "x.json", what: str = "tokenizer") -> BaseException:
    """What `reading` makes of an error of another library."""
    try:
        with reading(source, what):
            raise error
    except BaseException as found:
        return found
    raise AssertionError("nothing was raised")


@pytest.fixture
def in_the_project(monkeypatch):
    """Errors that are raised here count as the project's own."""
    monkeypatch.setattr(module, "raised_here", lambda error: True)


class PanicException(BaseException):
    """As pyo3 defines it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("model"), f"{START}: key 'model' is missing"),
        (RecursionError("maximum recursion depth exceeded"), f"{START}: nested too deeply"),
        (MemoryError(), f"{START}: it needs more memory than there is"),
        (TypeError("'int' has no len"), f"{START} (TypeError: 'int' has no len)"),
        (AttributeError("no x"), f"{START} (AttributeError: no x)"),
        (OverflowError("too large"), f"{START} (OverflowError: too large)"),
        (ZeroDivisionError("division by zero"), f"{START} (ZeroDivisionError: division by zero)"),
        (StopIteration(), f"{START} (StopIteration)"),
        (zlib.error("bad block"), f"{START} (error: bad block)"),
        (Exception("expected value at\n line 3"), f"{START} (Exception: expected value at line 3)"),
        (ValueError("unknown variant"), f"{START} (unknown variant)"),
        (RuntimeError("cut off"), f"{START} (cut off)"),
        (OSError("no name of a file"), f"{START} (no name of a file)"),
        (PanicException("index out of bounds"), f"{START} (PanicException: index out of bounds)"),
    ],
)  # fmt: skip
def test_what_other_libraries_raise_is_one_line_with_the_file(error, expected):
    found = raised(error)
    assert isinstance(found, InputError) and str(found) == expected
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        MissingPackageError("install it"),
        FileNotFoundError(2, "No such file or directory", "other.json"),
        InputError("other.json: cut off", "other.json"),
    ],
)
def test_what_says_enough_passes(error):
    assert raised(error) is error


def test_this_projects_own_messages_get_the_file_in_front_once(in_the_project):
    with pytest.raises(InputError, match=r"^c\.json: lr: got -1; at least 0 is needed$"), reading("c.json"):
        raise ValueError("lr: got -1; at least 0 is needed")
    with pytest.raises(ValueError, match=r"^c\.json: key 'x' is missing$"), reading("c.json"):
        raise ValueError("c.json: key 'x' is missing")
    with pytest.raises(InputError, match=r"^a: b: wrong$"), reading("z"), reading("a"):
        raise InputError("b: wrong")


def test_bugs_keep_their_traceback(in_the_project):
    for bug in (AssertionError("never"), NameError("nme"), NotImplementedError()):
        assert raised(bug) is bug


def test_assertions_of_other_libraries_are_about_the_file():
    assert str(raised(AssertionError("size"))) == f"{START} (AssertionError: size)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "not valid JSON: more than 64 levels deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "not valid JSON: more than 64 levels deep"),
        ('{"a": 1, "b": 2, "a": 3}', "not valid JSON (key 'a' stands twice in one mapping)"),
        ('{"a": NaN}', "not valid JSON (NaN is no number that anything can be set to)"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON (Exceeds the limit (4300 digits)"),
        ('{"a": ', "not valid JSON (Expecting value"),
        ("", "not valid JSON (Expecting value"),
        ("[1]", "expected a mapping, found list; hint"),
        ("3", "expected a mapping, found int; hint"),
    ],
)
def test_json_is_refused_in_one_line(tmp_path, text, expected):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_json(path, "; hint")
    assert str(refused.value).startswith(f"{path}: {expected}") and "\n" not in str(refused.value)


def test_json_that_is_no_text_and_json_that_is_missing(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path)


def test_json_within_the_bounds_is_read(tmp_path):
    content = {"a": [1, {"b": [[]]}], "limits": [0.0, float("inf")], "c": None}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json") == content


def test_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", {"JSON": 1 << 20, "YAML": 1 << 20})
    (tmp_path / "a.json").write_text('{"a": "' + "x" * (1 << 20) + '"}')
    (tmp_path / "a.yaml").write_text("a: " + "x" * (1 << 20))
    for read, name in ((read_json, "a.json"), (read_yaml, "a.yaml")):
        with pytest.raises(InputError, match=rf"{name}: not valid (JSON|YAML): more than 1,024 KiB"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BILLION_LAUGHS, r" line 5: not valid YAML: more than 20,000 values, aliases written out"),
        (MERGED_LAUGHS, r" line \d: not valid YAML: more than 20,000 values, aliases written out"),
        ("a: &a [*a]", " line 1: not valid YAML: an alias stands inside what it is an alias of"),
        ("&a a: 1\nb: &b {c: {d: *b}}", " line 2: not valid YAML: an alias stands inside what it is an alias of"),
        ("[" * 20_000, " line 1: not valid YAML: more than 64 levels deep"),
        ("[" * 66 + "]" * 66, " line 1: not valid YAML: more than 64 levels deep"),
        ("a: [" + "1," * 25_000, " line 1: not valid YAML: more than 20,000 values, aliases written out"),
        ("- " * 100 + "a", " line 1: not valid YAML: more than 64 levels deep"),
        ("a: 1\nb: 2\na: 3", " line 1: not valid YAML: key 'a' stands twice in one mapping"),
        ("a: {b: 1, b: 1}", " line 1: not valid YAML: key 'b' stands twice in one mapping"),
        ("a: " + "1" * 5000, " not valid YAML: Exceeds the limit"),
        ("a: 2001-99-99", " not valid YAML: month must be"),
        ("a: !!python/object/apply:os.system [true]", " line 1: not valid YAML: could not determine a constructor"),
        ("a: [1, 2", " line 1: not valid YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", " line 2: not valid YAML: but found another document"),
        ("? [a]\n: 1", " line 1: not valid YAML: found unhashable key"),
        ("a: !!int x", " not valid YAML: invalid literal"),
        ("a: !!binary \xe9", " line 1: not valid YAML: "),
        ("a: \x00", " not valid YAML: unacceptable character #x0000"),
    ],
)
def test_yaml_is_refused_in_one_line(tmp_path, text, expected):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{path}:{expected}") as refused:
        read_yaml(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_yaml_within_the_bounds_is_read(tmp_path):
    text = "\ufeffa: &a {k: 1, l: [1.5, yes, null]}\nb: *a\nc: {<<: *a, m: 2}\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text.removeprefix("\ufeff"))
    assert parse_yaml("", "nothing") is None
