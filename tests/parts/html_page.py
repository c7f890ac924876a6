"""What a page shows and holds, for tests of reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "input"}


class HTMLPage(HTMLParser):
    """Tags with their attributes, and the text outside style and script; fails on tags that do not close."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.rows: list[list[str]] = []
        """Texts of the cells of every row of every table."""
        self.feed(source)
        assert not self.open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Attributes of the tags that have these; `data_x` stands for `data-x`, and a value of "" for any value."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            found
            for name, found in self.tags
            if name == tag and all(key in found and value in ("", found[key]) for key, value in wanted.items())
        ]

    def assert_self_contained(self) -> None:
        """Nothing is loaded from anywhere, by any attribute or style, and the page forbids it to the browser."""
        for _, attributes in self.tags:
            for name in ("src", "href", "action", "poster", "srcset"):
                value = attributes.get(name) or "data:"
                assert value.startswith(("data:", "#")), value
        (policy,) = (tag["content"] for tag in self.all("meta", http_equiv="Content-Security-Policy"))
        assert policy.startswith("default-src 'none'")
        without_data = re.sub(r"base64,[\w+/=]*", "", self.rawdata_all)
        assert not re.search(r"(https?:)?//\w|@import|url\((?!#)", re.sub(r"/\*.*?\*/|// --- .*", "", without_data))

    def feed(self, source: str) -> None:
        self.rawdata_all = source
        super().feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["style"], ["script"]):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()
