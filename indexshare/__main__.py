"""`python -m indexshare` is the command `indexshare`."""

from indexshare.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
