"""Runs the notebooks of `docs/notebooks` and writes what they print and draw back into them.

    python docs/run_notebooks.py                  # all of them
    python docs/run_notebooks.py 2-selection      # one

No Jupyter is needed: cells run one after the other in this process, what is printed becomes text, open figures become
pictures. Cells must print what they want to show.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "notebooks"
_DPI = 80


def run_cell(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell in the namespace `names`; its outputs in the notebook's format."""
    from matplotlib import pyplot

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        exec(compile(source, "<cell>", "exec"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    for number in pyplot.get_fignums():
        data = io.BytesIO()
        pyplot.figure(number).savefig(data, format="png", dpi=_DPI)
        picture = base64.b64encode(data.getvalue()).decode() + "\n"
        outputs.append({"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}})
    pyplot.close("all")
    return outputs


def run_notebook(file: Path) -> dict[str, Any]:
    """The notebook with the outputs of a fresh run; the first cell that fails ends it with its error."""
    import matplotlib

    matplotlib.use("Agg")
    notebook: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    with contextlib.chdir(file.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                cell["outputs"] = run_cell("".join(cell["source"]), names)
                cell["execution_count"] = number
    return notebook


def main() -> None:
    """Run the notebooks named, or all."""
    names = sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    for name in names:
        file = FOLDER / f"{name}.ipynb"
        print(f"running {file}", file=sys.stderr)
        text = json.dumps(run_notebook(file), indent=1, ensure_ascii=False) + "\n"
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)


if __name__ == "__main__":
    main()
