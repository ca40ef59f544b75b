"""What a stage optimises, a file each. A new objective is a subclass of `Objective` that a stage names."""

from indexshare.train.objectives.balance import Balance
from indexshare.train.objectives.base import Activations, Objective, Part, Progress, Tally, Term, part_of
from indexshare.train.objectives.draft import Draft
from indexshare.train.objectives.draft_overlap import DraftOverlap
from indexshare.train.objectives.indexer import Indexer
from indexshare.train.objectives.next_token import NextToken

__all__ = [
    "Activations",
    "Balance",
    "Draft",
    "DraftOverlap",
    "Indexer",
    "NextToken",
    "Objective",
    "Part",
    "Progress",
    "Tally",
    "Term",
    "part_of",
]
