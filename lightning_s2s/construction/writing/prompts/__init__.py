"""The prompts, files to read and to edit: `prompts: FOLDER` takes those of a folder of yours in their place."""

from __future__ import annotations

import string
from importlib import resources
from pathlib import Path

NAMES = ("system", "line", "reply", "next_line", "judge", "topics", "situations")


class Prompts:
    """The texts by name.

    Args:
        folder: with `NAME.txt` for those that differ from the package's; None takes these.

    Raises:
        ValueError: the folder is not there, or holds a file of another name.
    """

    def __init__(self, folder: str | None = None):
        self.texts = {name: (resources.files(__package__) / f"{name}.txt").read_text("utf-8") for name in NAMES}
        self.folder = folder
        if folder is None:
            return
        if not Path(folder).is_dir():
            raise ValueError(f"prompts: {folder}: no such folder")
        for path in sorted(Path(folder).glob("*.txt")):
            if path.stem not in NAMES:
                raise ValueError(f"prompts: {path}: allowed names: {', '.join(f'{name}.txt' for name in NAMES)}")
            self.texts[path.stem] = path.read_text(encoding="utf-8")

    def lines(self, name: str) -> list[str]:
        """A file that is a list, without empty lines and those that begin with `#`."""
        return [line.strip() for line in self.texts[name].splitlines() if line.strip() and not line.startswith("#")]

    def fill(self, name: str, **fields: str) -> str:
        """A prompt with its `$fields` filled in.

        Raises:
            ValueError: it names a field that there isn't.
        """
        try:
            return string.Template(self.texts[name].strip()).substitute(fields)
        except (KeyError, ValueError) as error:
            where = f"{self.folder}/{name}.txt" if self.folder else name
            raise ValueError(
                f"prompts: {where}: {error}: fields are {', '.join(f'${field}' for field in sorted(fields))}; "
                "$$ is a dollar"
            ) from None
