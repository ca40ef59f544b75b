"""`indexshare rl`: trajectories to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from indexshare.cli.output import note
from indexshare.text.files import check_can_write

rl = App(name="rl", help="Reinforcement learning: look at trajectories.")


@rl.command
def view(
    file: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("trajectories.html"),
    tokenizer: Path | None = None,
    most: int = 64,
) -> None:
    """Write a page that shows trajectories token by token, coloured by source, mask, advantage, value or ratio.

    The page is one file that needs nothing else.

    Parameters
    ----------
    file
        A file of trajectories, such as runs/rl_sort/rollouts/000001.safetensors.
    out
        The page to write.
    tokenizer
        Directory of the tokenizer, where the file does not hold the tokens' texts.
    most
        Trajectories to show, from the first.
    """
    from indexshare.rl.files import read_trajectories
    from indexshare.rl.viewer import write_page
    from indexshare.text.tokenizer import Tokenizer

    if most < 1:
        raise ValueError(f"--most is {most}; expected at least 1")
    check_can_write(out, replaces=(b"<!doctype html>",))
    trajectories, texts = read_trajectories(file)
    if tokenizer is not None:
        known = Tokenizer.load(tokenizer)
        used = {int(token) for each in trajectories for segment in each.segments for token in segment.tokens}
        texts = {token: known.decode([token]) for token in sorted(used)}
    write_page(out, trajectories[:most], texts, title=f"{file.name}: {len(trajectories)} trajectories")
    note(f"wrote {out}")
