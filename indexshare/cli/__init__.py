"""The command `indexshare`: one verb per job. A room of the package is imported only when its verb runs."""

from indexshare.cli.app import build_app, main

__all__ = ["build_app", "main"]
