"""Chat templates: a conversation as the text that a model was trained on, written by the checkpoint's own jinja file.

Rendered as transformers does: in a sandbox, blocks without the line break behind them, with `raise_exception`,
`strftime_now` and the names of the special tokens within reach of the template. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from indexshare.text.special_tokens import CONFIG_FILE

TEMPLATE_FILE = "chat_template.jinja"
GLM_FILE = "glm.jinja"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def glm_template() -> ChatTemplate:
    """The conversation format of GLM-5.2, for models that are trained to follow it."""
    return ChatTemplate((Path(__file__).parent / GLM_FILE).read_text(encoding="utf-8"))


class ChatTemplate:
    """The template of a model.

    Args:
        source: jinja text.
        tokens: special tokens by the names that templates use (`bos_token`, ...).

    Raises:
        ValueError: the text is no valid template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        import jinja2

        self.source, self._tokens = source, dict(tokens or {})
        try:
            _ = self._compiled
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is not valid: {error}") from None

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate | None:
        """The template of a model directory, None where it has none: `chat_template.jinja`, or `tokenizer_config.json`.

        Raises:
            ValueError: a file is damaged, several templates without a default one, or no valid template.
        """
        folder = Path(directory)
        config = _config(folder / CONFIG_FILE)
        file = folder / TEMPLATE_FILE
        source = file.read_text(encoding="utf-8") if file.is_file() else _named_template(config, folder)
        if source is None:
            return None
        tokens = {name: _content(config[name]) for name in _NAMED if config.get(name)}
        return cls(source, tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer_follows: bool = True, **variables: Any) -> str:
        """The conversation as text, ready for the tokens of an answer.

        Args:
            messages: each with `role` and `content`.
            answer_follows: end with what opens the assistant's answer (`add_generation_prompt`).
            variables: anything else that the template reads, such as `enable_thinking`.

        Raises:
            ValueError: the template refuses the conversation, or fails; its own words are given.
        """
        import jinja2

        known = {"add_generation_prompt": answer_follows, "tools": None, "documents": None} | self._tokens | variables
        try:
            return self._compiled.render(messages=[dict(message) for message in messages], **known)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from None

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads, such as `tools` or `enable_thinking`."""
        import jinja2.meta

        return frozenset(jinja2.meta.find_undeclared_variables(self._environment.parse(self.source)))

    @cached_property
    def _compiled(self) -> Any:
        return self._environment.from_string(self.source)

    @cached_property
    def _environment(self) -> Any:
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment


def _refuse(text: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(text)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)


def _config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return content if isinstance(content, dict) else {}


def _named_template(config: Mapping[str, Any], folder: Path) -> str | None:
    """The template inside `tokenizer_config.json`: a text, or the default one of a list."""
    found = config.get("chat_template")
    if isinstance(found, list):
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        if not isinstance(by_name.get("default"), str):
            raise ValueError(
                f"{folder / CONFIG_FILE} has chat templates {sorted(map(str, by_name))}; expected a default"
            )
        found = by_name["default"]
    return found if isinstance(found, str) else None


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
