"""What the server knows of the model: its names, tokenizer, template and limits. No torch, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexshare.config.generation import GenerationDefaults
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import model_directory
from indexshare.engine.admission import CapacityError, check_capacity, check_prompt
from indexshare.engine.params import SamplingParams
from indexshare.serve.errors import ApiError, bad
from indexshare.text.answer_parser import END_THINK, KEY, THINK
from indexshare.text.chat_template import ChatTemplate
from indexshare.text.conversation import ends_in_reasoning, plain_messages, plain_tools
from indexshare.text.effort import thinking_variables
from indexshare.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A conversation ready for the engine.

    Attributes:
        ids: of the rendered text.
        text: the rendered text.
        tools: those that are offered.
        in_reasoning: whether the answer begins inside a think block.
        reasoning: whether the template knows think blocks at all.
    """

    ids: list[int]
    text: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    in_reasoning: bool = False
    reasoning: bool = True


@dataclass(kw_only=True)
class ServedModel:
    """A model as clients see it.

    Attributes:
        names: what requests may call it; the first one is what replies do.
        config, tokenizer, template, defaults: from its directory; no template where it has none.
        max_context, cache_tokens: of the engine, once it runs.
    """

    names: Sequence[str]
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    max_context: int = 0
    cache_tokens: int = 0

    @classmethod
    def load(cls, model: str, names: Sequence[str] = ()) -> ServedModel:
        """From a shipped model's name or a directory; ValueError when it is no model, or has no tokenizer."""
        directory = model_directory(model)
        return cls(
            names=tuple(names) or (Path(model).name,),
            config=ModelConfig.load(directory),
            tokenizer=Tokenizer.load(directory),
            template=ChatTemplate.load(directory),
            defaults=GenerationDefaults.load(directory),
        )

    @property
    def name(self) -> str:
        """What replies call it."""
        return self.names[0]

    def check_name(self, name: str | None) -> None:
        """Refuse (404) a request for another model; one that names none means this."""
        if name is not None and name not in self.names:
            known = ", ".join(map(repr, self.names))
            raise ApiError(
                404, f"the model {name!r} is not served here; served are {known}", param="model", code="model_not_found"
            )

    def prompt_ids(self, prompt: Any, name: str = "prompt", *, whole: bool = True) -> list[int]:
        """Ids of a text, with what the tokenizer puts around a `whole` prompt, or checked ids."""
        encode = self.tokenizer.encode_prompt if whole else self.tokenizer.encode
        try:
            ids = encode(prompt) if isinstance(prompt, str) else prompt
            return check_prompt(ids, self.config.vocab_size, name)
        except ValueError as error:
            raise bad(str(error), name) from None

    def chat_prompt(
        self,
        messages: Any,
        *,
        tools: Any = None,
        effort: str | None = None,
        variables: Mapping[str, Any] | None = None,
        answer_follows: bool = True,
    ) -> ChatPrompt:
        """A conversation rendered by the model's template.

        Args:
            messages, tools: as OpenAI's clients send them.
            effort: a word of `text.effort`.
            variables: of the template, from the user.
        """
        template = self.template
        if template is None:
            raise bad("this model has no chat template, so it knows no conversations; use /v1/completions", "messages")
        try:
            offered = plain_tools(tools)
            if offered and "tools" not in template.variables:
                raise ValueError("this model's chat template has no tools; leave them out")
            if offered and KEY not in template.source:
                raise ValueError(
                    "this model's chat template writes calls in a form that is not read here; leave tools out"
                )
            said = thinking_variables(effort, variables or {}, template.variables)
            text = template.render(
                plain_messages(messages), answer_follows=answer_follows, tools=offered or None, **said
            )
            ids = check_prompt(self.tokenizer.encode(text), self.config.vocab_size, "the conversation")
        except ValueError as error:
            raise bad(str(error), "messages") from None
        reasons = THINK in template.source or END_THINK in template.source
        return ChatPrompt(
            ids=ids, text=text, tools=offered, in_reasoning=reasons and ends_in_reasoning(text), reasoning=reasons
        )

    def room(self, prompt_len: int) -> int:
        """Tokens that fit behind a prompt."""
        return min(self.max_context, self.cache_tokens + 1) - prompt_len

    def check_fits(self, prompt_len: int, params: SamplingParams) -> None:
        """Refuse (400) what the context or the cache can never hold, with the sizes."""
        try:
            check_capacity(prompt_len, params.max_tokens, max_context=self.max_context, cache_tokens=self.cache_tokens)
        except CapacityError as error:
            raise bad(str(error), "messages", "context_length_exceeded") from None

    def token_text(self, token_id: int) -> str:
        """What one token stands for; U+FFFD for a part of a character, nothing for an id without a token."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Its bytes."""
        return self.tokenizer.token_bytes(token_id) if token_id < self.tokenizer.vocab_size else b""
