"""`indexshare shell-completion`: verbs, options and files completed by the Tab key."""

from __future__ import annotations

from typing import Literal

from indexshare.cli.output import write

Shell = Literal["bash", "zsh", "fish", "powershell"]


def shell_completion(shell: Shell, /) -> None:
    """Print a script that lets a shell complete verbs and options of this command.

    For this session: `source <(indexshare shell-completion bash)`. For good, write it to where your shell looks, such
    as ~/.local/share/bash-completion/completions/indexshare, a file _indexshare in a folder of zsh's fpath, or
    ~/.config/fish/completions/indexshare.fish.

    Parameters
    ----------
    shell
        The shell.
    """
    from indexshare.cli import build_app

    write(build_app().generate_completion(prog_name="indexshare", shell=shell))
