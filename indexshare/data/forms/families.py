"""All forms, and which of them are never trained on.

A form is a way of stating with a way of asking. Both sides are split by a fixed rule, a hash of the family's name. A
form is held out if its statement or its question is: nothing of that family is ever planted, or asked, in training.
"""

from __future__ import annotations

from dataclasses import dataclass

from indexshare.data.forms.questions import QUESTIONS, Question
from indexshare.data.forms.statements import STATEMENTS, Statement
from indexshare.data.splitting import is_held_out

_HELD_OUT = 0.2  # of the families of either side
# Before a name when it is hashed. Chosen so that what the generated lookups state and ask (constants, entries of
# tables, `assert`) is on the side of training, where it has always been.
_SALT = "kinds"


@dataclass(frozen=True)
class Form:
    """One way of stating a fact and of asking for it."""

    statement: Statement
    question: Question

    @property
    def name(self) -> str:
        """`default/bullet`."""
        return f"{self.statement.name}/{self.question.name}"


def is_held_out_family(side: str, name: str) -> bool:
    """Whether a family is never trained on.

    Args:
        side: `statement` or `question`.
        name: of the family.
    """
    return is_held_out(f"{_SALT}/{side}/{name}", _HELD_OUT)


def is_trained(form: Form) -> bool:
    """Whether training may show this form; a function of the names of its two families."""
    names = (("statement", form.statement.name), ("question", form.question.name))
    return not any(is_held_out_family(side, name) for side, name in names)


FORMS: tuple[Form, ...] = tuple(Form(statement, question) for statement in STATEMENTS for question in QUESTIONS)
TRAINED: tuple[Form, ...] = tuple(form for form in FORMS if is_trained(form))
HELD_OUT: tuple[Form, ...] = tuple(form for form in FORMS if not is_trained(form))
