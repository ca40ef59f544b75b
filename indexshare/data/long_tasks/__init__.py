"""Questions about long generated texts: retrieval, tracking, counting and reading, for any tokenizer and any length.

The kinds are those of RULER (Hsieh et al., arXiv 2404.06654, section 3) and of questions over many documents; wording,
names and texts are this project's own. Everything is a function of (task, seed, index, length): nothing is downloaded.
"""

from indexshare.data.long_tasks.base import FORMS, VERSION, Form, Item, LongTask, fit_item, read_answer, score
from indexshare.data.long_tasks.registry import long_task, long_tasks, register_long_task

__all__ = [
    "FORMS", "VERSION", "Form", "Item", "LongTask", "fit_item", "long_task", "long_tasks", "read_answer",
    "register_long_task", "score",
]  # fmt: skip
