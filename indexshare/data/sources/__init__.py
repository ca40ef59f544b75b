"""Sources of rows, and their mixture. The names that a mixture may use are registered below."""

from indexshare.data.sources.base import Source, State
from indexshare.data.sources.filled import FilledGaps
from indexshare.data.sources.formed import AskedForms
from indexshare.data.sources.generated import LookupTasks, RetrievalTasks
from indexshare.data.sources.mixture import Mixture
from indexshare.data.sources.packed import PackedText
from indexshare.data.sources.registry import Draw, Material, make_source, register, source_names, weight_of
from indexshare.data.sources.renamed import RenamedText
from indexshare.data.sources.repeated import RepeatedText

__all__ = [
    "AskedForms",
    "Draw",
    "FilledGaps",
    "LookupTasks",
    "Material",
    "Mixture",
    "PackedText",
    "RenamedText",
    "RepeatedText",
    "RetrievalTasks",
    "Source",
    "State",
    "make_source",
    "register",
    "source_names",
    "weight_of",
]

register("text", lambda data, seed: PackedText(data.corpus, seed=seed))
register("renamed", lambda data, seed: RenamedText(data.corpus, data.tokenizer, seed=seed + 2))
register("repeated", lambda data, seed: RepeatedText(data.corpus, seed=seed + 4))
register("retrieval", lambda data, seed: RetrievalTasks(data.tokenizer, seed=seed + 1))
register("lookup", lambda data, seed: LookupTasks(data.tokenizer, seed=seed + 1))
register("forms", lambda data, seed: AskedForms(data.corpus, data.tokenizer, seed=seed + 3))
register("fill", lambda data, seed: FilledGaps(data.corpus, data.tokenizer, seed=seed + 5))
