"""Text files as documents, and the packages that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from indexshare.text.tokenizer import file_header


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text file: its path relative to the folder (with `/`), and its text."""

    name: str
    text: str

    @property
    def headed(self) -> str:
        """The text as the model sees it, under the line that names the file."""
        return file_header(self.name) + self.text


def package_of(name: str) -> str:
    """The package of a file: the first folder of its path; "" for files at the top, which count as one package."""
    return name.split("/")[0] if "/" in name else ""
