"""Forms of retrieval: facts in real code, stated in one way and asked for in another."""

from indexshare.data.forms.families import FORMS, HELD_OUT, TRAINED, Form, is_held_out_family, is_trained
from indexshare.data.forms.text import Answer, AskedText, File, ask_about

__all__ = [
    "FORMS",
    "HELD_OUT",
    "TRAINED",
    "Answer",
    "AskedText",
    "File",
    "Form",
    "ask_about",
    "is_held_out_family",
    "is_trained",
]
