"""A tokenizer that knows the words of generated tasks a little, and writes digits one by one."""

import pytest

from indexshare.data.tasks import retrieval_text
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe


@pytest.fixture(scope="session")
def task_tokenizer() -> Tokenizer:
    return train_bpe((retrieval_text(0, index, 600) for index in range(12)), 800, SPECIAL_TOKENS)
