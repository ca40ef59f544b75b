"""Sources of rows, and their mixture. The names that a mixture may use are registered below."""

from indexshare.data.sources.base import Source, State
from indexshare.data.sources.generated import LookupTasks, RetrievalTasks
from indexshare.data.sources.mixture import Mixture
from indexshare.data.sources.packed import PackedText
from indexshare.data.sources.registry import Draw, Material, make_source, register, source_names, weight_of
from indexshare.data.sources.renamed import RenamedText

__all__ = [
    "Draw",
    "LookupTasks",
    "Material",
    "Mixture",
    "PackedText",
    "RenamedText",
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
register("retrieval", lambda data, seed: RetrievalTasks(data.tokenizer, seed=seed + 1))
register("lookup", lambda data, seed: LookupTasks(data.tokenizer, seed=seed + 1))
