"""The models that come with the package, and how a name on a command line becomes a folder or a configuration."""

import difflib
from pathlib import Path

from indexshare.config.gguf_unpacked import SUFFIX, unpacked
from indexshare.config.model import ModelConfig
from indexshare.config.presets import PRESETS, preset

CONFIG_FILE = "config.json"
_MODELS = Path(__file__).resolve().parent.parent / "shipped"


def shipped_models() -> dict[str, Path]:
    """Name and folder of every model inside the package, by name (a Hugging Face directory each)."""
    if not _MODELS.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(_MODELS.iterdir()) if (folder / CONFIG_FILE).is_file()}


def model_directory(name_or_dir: str | Path) -> Path:
    """The folder that a name or path stands for: a shipped model's name first, then a directory or a GGUF file.

    The folder of a training run stands for its `model/`. A directory that is called like a shipped model is reached as
    `./nano`.

    Raises:
        ValueError: neither; the text lists the shipped names and the nearest one.
    """
    shipped = shipped_models()
    if isinstance(name_or_dir, str) and name_or_dir in shipped:
        return shipped[name_or_dir]
    path = Path(name_or_dir)
    if path.is_dir() and str(name_or_dir):
        if not (path / CONFIG_FILE).is_file() and (path / "model" / CONFIG_FILE).is_file():
            return path / "model"
        if not (path / CONFIG_FILE).is_file():
            raise ValueError(f"{path} has no {CONFIG_FILE}; {_what_is_there(path)}")
        return path
    if path.is_file():
        if path.suffix == SUFFIX:
            return unpacked(path)
        raise ValueError(f"{path} is a file; expected a model directory with a {CONFIG_FILE}, or a {SUFFIX} file")
    if not str(name_or_dir):
        raise ValueError(f"the model's name is empty; expected a shipped model ({', '.join(shipped)}) or a directory")
    near = difflib.get_close_matches(str(name_or_dir), shipped, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join(shipped) or "none"
    if str(name_or_dir) in PRESETS:
        hint = "; it is a preset, a configuration without weights: give the directory of its checkpoint"
    raise ValueError(f"no model {str(name_or_dir)!r}: not a directory, and not a shipped model ({known}){hint}")


def _what_is_there(path: Path) -> str:
    """What a folder without a configuration may be: one in which saving was cut off between two moves, or no model."""
    previous = sorted(path.glob(".previous-*"))
    if previous:
        return f"a model was being saved there; what was there before lies in {previous[0]}: move it back"
    if (path / "checkpoint.pt").is_file():
        return "it is a training run that is not finished: give its command again and it goes on"
    return "expected a Hugging Face model directory"


def find_config(model: str) -> tuple[ModelConfig, str, Path | None]:
    """Configuration of a shipped model, a directory, a GGUF or config file, or a preset (in this order).

    Returns:
        The configuration, which of them it is, and the folder with the weights if there is one.

    Raises:
        ValueError: none of them; the nearest name is given.
    """
    shipped, path = shipped_models(), Path(model)
    if model in shipped:
        return ModelConfig.load(shipped[model]), "shipped model", shipped[model]
    if path.is_file() and path.suffix == SUFFIX:
        directory = unpacked(path)
        return ModelConfig.load(directory), "GGUF file", directory
    if path.is_file():
        return ModelConfig.load(path), "configuration file", None
    if path.exists():
        directory = model_directory(model)
        return ModelConfig.load(directory), "directory", directory
    if model in PRESETS:
        return preset(model), "preset", None
    names = sorted({*shipped, *PRESETS})
    near = difflib.get_close_matches(model.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no model {model!r}: not a directory, nor one of {', '.join(names)}{hint}")
