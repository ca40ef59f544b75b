"""What the engine takes: prompts of known ids that fit into context and cache. Plain Python, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from indexshare.config.arguments import plain_integer
from indexshare.text.files import plural


class CapacityError(ValueError):
    """A request that can never fit into the context or the cache, with the sizes and the fix."""


def check_prompt(prompt: Iterable[Any], vocab_size: int, name: str = "prompt") -> list[int]:
    """Token ids as plain integers.

    Args:
        prompt: ids in any sequence; numpy and torch integers are accepted.
        vocab_size: ids must be below it.
        name: what to call the prompt in messages.

    Raises:
        ValueError: no ids, something that is not an integer, or an id out of range.
    """
    ids = list(prompt)
    if not ids:
        raise ValueError(f"{name} is empty; expected at least one token")
    if set(map(type, ids)) != {int}:
        for at, value in enumerate(ids):
            if (token := plain_integer(value)) is None:
                raise ValueError(f"{name}, position {at}: {value!r} is not an integer; expected token ids")
            ids[at] = token
    if min(ids) < 0 or max(ids) >= vocab_size:
        at, bad = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        raise ValueError(f"{name}, position {at}: token id {bad} is out of range; expected 0 to {vocab_size - 1}")
    return ids


def check_capacity(
    prompt_len: int, max_tokens: int, *, max_context: int, cache_tokens: int, name: str = "prompt"
) -> None:
    """Refuse what could never finish, even alone.

    Args:
        prompt_len: prompt tokens.
        max_tokens: most tokens to be generated.
        max_context: most positions, prompt and generated ones together.
        cache_tokens: tokens that the whole cache holds.

    Raises:
        CapacityError: with the sizes and the fix.
    """
    total = prompt_len + max_tokens
    if prompt_len >= max_context:
        raise CapacityError(
            f"{name} has {plural(prompt_len, 'token')}, but the context holds {max_context}, of which at least one is "
            f"generated; shorten it to at most {max_context - 1}, or raise max_context if the model allows it"
        )
    if total > max_context:
        raise CapacityError(
            f"{name}: {plural(prompt_len, 'prompt token')} + max_tokens {max_tokens} = {total} exceed the context of "
            f"{max_context}; set max_tokens to at most {max_context - prompt_len} or shorten the prompt"
        )
    if total - 1 > cache_tokens:  # the last generated token needs no room
        raise CapacityError(
            f"{name}: {plural(prompt_len, 'prompt token')} + max_tokens {max_tokens} take {total - 1} cache slots, but "
            f"the cache has {cache_tokens}; raise cache_tokens, lower max_tokens or shorten the prompt"
        )
