"""A GGUF file as a model directory: what it says of the model in files of their own, the weights where they are.

The directory lies in the user's cache folder, made once for a file as it is; everything that reads model directories
reads it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import partial
from hashlib import blake2b
from pathlib import Path

from indexshare.config.environment import gguf_directory
from indexshare.config.gguf_file import GgufFile, read_gguf
from indexshare.config.gguf_models import public_config
from indexshare.config.gguf_vocabulary import end_ids, tokenizer_files

SUFFIX = ".gguf"
WEIGHTS_LINK = "weights.gguf"  # leads to the file
_FORM = 1  # to be raised when other files are made of the same GGUF file


def unpacked(file: Path) -> Path:
    """The directory for a GGUF file.

    Raises:
        ValueError: the file is damaged, or holds a model or a tokenizer that is not read.
    """
    path = file.resolve()
    facts = path.stat()
    name = blake2b(f"{path} {facts.st_size} {facts.st_mtime_ns} {_FORM}".encode(), digest_size=8).hexdigest()
    folder = gguf_directory() / f"{path.stem[:80]}-{name}"
    if (folder / WEIGHTS_LINK).exists():
        return folder
    contents = _contents(read_gguf(path))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _made(folder, contents, path)
    except OSError:  # no cache folder to write to: one for as long as the process runs
        own = Path(tempfile.mkdtemp(prefix="indexshare-gguf-"))
        atexit.register(partial(shutil.rmtree, own, ignore_errors=True))
        return _made(own / folder.name, contents, path)


def _contents(file: GgufFile) -> dict[str, bytes]:
    """Files by name."""
    try:
        config = public_config(file)
        files = tokenizer_files(file.keys, config["vocab_size"])
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    ends = end_ids(file.keys)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": ends or None}
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    files["generation_config.json"] = (json.dumps(generation, indent=2) + "\n").encode()
    return files


def _made(folder: Path, contents: dict[str, bytes], weights: Path) -> Path:
    """Write the directory whole, or find that somebody else has."""
    new = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent if folder.parent.is_dir() else None))
    try:
        for name, content in contents.items():
            (new / name).write_bytes(content)
        (new / WEIGHTS_LINK).symlink_to(weights)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(new, folder)
    except OSError:
        if not (folder / WEIGHTS_LINK).exists():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
