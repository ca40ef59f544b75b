"""Complete code inside a real package: all of rich to choose from, at the start of a method.

This is what `make demo` runs. It prints the command, runs it, and shows how the file really goes on.
"""

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

CONTEXT_TOKENS = 17_000
NEW_TOKENS = 96
FILE = "padding.py"
AFTER = "def __rich_measure__("  # the cursor: at the end of the first line of this method


def main() -> int:
    """Run the completion; returns the command's exit code."""
    spec = find_spec("rich")
    assert spec is not None and spec.origin is not None, "rich is installed with indexshare"
    package = Path(spec.origin).parent
    lines = (package / FILE).read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if AFTER in text)
    sizes = [len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")]
    print(f"{package}: {len(sizes)} files, {sum(sizes):,} lines", flush=True)
    command = [
        *("indexshare", "complete", f"{package / FILE}:{line}", "--context", str(package), "--model", "nano"),
        *("--max-context-tokens", str(CONTEXT_TOKENS), "--max-tokens", str(NEW_TOKENS)),
    ]
    print(f"$ {shlex.join(command)}\n{'-' * 80}", flush=True)
    print("\n".join(lines[max(line - 6, 0) : line]), flush=True)
    code = subprocess.run([sys.executable, "-m", *command]).returncode
    print("-" * 80 + "\nThe file really goes on:\n" + "\n".join(lines[line : line + 10]))
    return code


if __name__ == "__main__":
    sys.exit(main())
