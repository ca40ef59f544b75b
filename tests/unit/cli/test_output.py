"""What reaches the terminal: sizes people can read, plain tables for programs, no control characters."""

import io
import sys

import pytest

from indexshare.cli import output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert output.size(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (11_086_848, "11,086,848 (11.1 M)"), (10**9, "1,000,000,000 (1.0 B)")]
)
def test_counts(number: int, text: str) -> None:
    assert output.count(number) == text


def test_a_terminal_gets_no_escape_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b[2Jb\x9bc\x07\td\n"
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.write(hostile)
    monkeypatch.setattr(sys, "stdout", file)
    output.write(hostile)
    assert terminal.getvalue() == "a\ufffd[2Jb\ufffdc\ufffd\td\n"
    assert file.getvalue() == hostile


def test_tables_align_and_follow_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a", "1,000"], ["long name", "2"]]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    output.print_table("Title", ["name", "n"], rows, to=output.console())
    assert sys.stdout.getvalue() == "Title\nname           n\na          1,000\nlong name      2\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    output.print_table("Title", ["name", "n"], rows, to=output.console())
    output.print_pairs("Title", [("name", "value")], to=output.console())
    assert "\x1b[3" not in sys.stdout.getvalue()
    assert "long name" in sys.stdout.getvalue()
