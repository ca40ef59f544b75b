"""The programs that `peers.py` compares, and what runs in the process of each: one job, one line of JSON.

    python benchmarks/contenders.py '{"job": "run", "program": "indexshare", ...}'

Every program reads the same weights in bfloat16 (llama.cpp its GGUF form, made by our exporter), or in about eight
bits (int8 here, Q8_0 there) or four (int4 here, Q4_0 there, made by llama.cpp from our file), the same random prompt in
one piece, and then writes the likeliest token again and again.
Times are taken around calls that have returned logits to Python.
"""

import itertools
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import prompt_ids, quiet_transformers

PROGRAMS = ("indexshare", "transformers", "llama.cpp")
PACKAGES = {"indexshare": "indexshare", "transformers": "transformers", "llama.cpp": "llama-cpp-python"}
INSTALL = {
    "transformers": "pip install 'transformers>=5.13'",
    "llama.cpp": "pip install llama-cpp-python==0.3.36",
}
WARM_TOKENS = 64
WEIGHTS = ("bf16", "int8", "int4")
GGUF_NAMES = {"bf16": "model.gguf", "int8": "model-q8_0.gguf", "int4": "model-q4_0.gguf"}
GGUF_TYPES = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
TAKES_PACKED = ("indexshare", "llama.cpp")  # weights of fewer bits


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A program with its settings: `flash` (attention) and `batch` (tokens computed together) are llama.cpp's.

    `weights` is one of `WEIGHTS`.
    """

    program: str
    threads: int
    flash: bool | None = None
    batch: int | None = None
    weights: str = "bf16"

    @property
    def label(self) -> str:
        """For people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        if self.program != "llama.cpp":
            bits = "" if self.weights == "bf16" else f", {self.weights}"
            return f"{self.program}{bits}, {threads}"
        bits = "" if self.weights == "bf16" else f", {GGUF_TYPES[self.weights].upper()}"
        flash = "flash attention" if self.flash else "no flash attention"
        return f"{self.program}{bits}, {flash}, batch {self.batch}, {threads}"


def build(config_file: Path, folder: Path) -> None:
    """Random bfloat16 weights (normal, `initializer_range`, seed 0), made and saved by transformers."""
    import torch

    transformers = quiet_transformers()
    config = transformers.GlmMoeDsaConfig(**json.loads(config_file.read_text()))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    unfinished = folder.with_name(folder.name + ".unfinished")
    transformers.GlmMoeDsaForCausalLM(config).save_pretrained(unfinished)
    os.replace(unfinished, folder)


def convert(folder: Path, weights: str) -> None:
    """The same weights for llama.cpp, without a tokenizer; in four bits by llama.cpp itself, every matrix alike."""
    from indexshare.export.gguf import export_gguf

    if weights != "int4":
        export_gguf(folder, folder / GGUF_NAMES[weights], type=GGUF_TYPES[weights], tokenizer=False)
        return
    import ctypes

    import llama_cpp

    plain, packed = folder / GGUF_NAMES["bf16"], folder / GGUF_NAMES[weights]
    if not plain.is_file():
        convert(folder, "bf16")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    unfinished = packed.with_suffix(".unfinished")
    if llama_cpp.llama_model_quantize(bytes(plain), bytes(unfinished), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not quantise {plain}; what it said is above")
    os.replace(unfinished, packed)


class Ours:
    """indexshare: its engine, in the chunks that it uses by itself."""

    def __init__(self, folder: Path, job: dict[str, Any], dtype: str = "bfloat16") -> None:
        from indexshare import load_model
        from indexshare.adapt.quantized import packing

        weights = None if job["weights"] == "bf16" else job["weights"]
        self._model = load_model(folder, dtype=dtype, adapt=packing(weights))
        self.vocab_size = self._model.config.vocab_size

    def logits(self, ids: list[int]) -> Any:
        """Of all positions, float32 array `[tokens, vocabulary]`."""
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([ids]))[0].float().numpy()

    def request(self, ids: list[int], count: int) -> tuple[float, list[float]]:
        """Seconds to the first token, and of each of `count` after it."""
        from indexshare.measure.runs import engine_for, request

        run = request(engine_for(self._model, len(ids), count), ids, count)
        return run.prefill_s, list(run.decode_s)


class Transformers:
    """The public model with scaled-dot-product attention and its own cache."""

    def __init__(self, folder: Path, job: dict[str, Any], dtype: str = "bfloat16") -> None:
        import torch

        self._library = quiet_transformers()
        self._model = self._library.GlmMoeDsaForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self.vocab_size = self._model.config.vocab_size

    def logits(self, ids: list[int]) -> Any:
        """As in `Ours`."""
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([ids])).logits[0].float().numpy()

    def request(self, ids: list[int], count: int) -> tuple[float, list[float]]:
        """As in `Ours`."""
        import torch

        cache = self._library.DynamicCache(config=self._model.config)

        def step(token: Any) -> Any:
            out = self._model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits.argmax(-1)

        with torch.inference_mode():
            return timed(lambda: step(torch.tensor([ids])), step, count)


class LlamaCpp:
    """llama.cpp through llama-cpp-python, with the settings of the variant."""

    def __init__(self, folder: Path, job: dict[str, Any], *, logits_all: bool = False) -> None:
        import llama_cpp

        self._library = llama_cpp
        threads, batch = job["threads"], job["batch"]
        self._llama = llama_cpp.Llama(
            str(folder / GGUF_NAMES[job["weights"]]), n_ctx=job["length"] + job["decode_tokens"] + 2 * WARM_TOKENS,
            n_batch=batch, n_ubatch=batch, n_threads=threads, n_threads_batch=threads, flash_attn=job["flash"],
            logits_all=logits_all, verbose=False,
        )  # fmt: skip
        self.vocab_size = self._llama.n_vocab()

    def logits(self, ids: list[int]) -> Any:
        """As in `Ours`; the model must have been opened with `logits_all`."""
        self._llama.reset()
        self._llama.eval(ids)
        return self._llama.scores[: len(ids)].copy()

    def _likeliest(self) -> int:
        """Waits for the computation, too: reading logits does."""
        import numpy as np

        pointer = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return int(np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).argmax())

    def request(self, ids: list[int], count: int) -> tuple[float, list[float]]:
        """As in `Ours`."""
        self._llama.reset()

        def step(tokens: list[int]) -> list[int]:
            self._llama.eval(tokens)
            return [self._likeliest()]

        return timed(lambda: step(ids), step, count)


CONTENDERS: dict[str, Any] = {"indexshare": Ours, "transformers": Transformers, "llama.cpp": LlamaCpp}


def timed(prefill: Any, step: Any, count: int) -> tuple[float, list[float]]:
    """Seconds of `prefill()`, and of each of `count` calls of `step` on what the call before it returned."""
    started = time.perf_counter()
    token = prefill()
    times = [time.perf_counter()]
    for _ in range(count):
        token = step(token)
        times.append(time.perf_counter())
    return times[0] - started, [after - before for before, after in itertools.pairwise(times)]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One request by one program: seconds, and memory with the model loaded and at the peak."""
    from indexshare.planner.machine import peak_memory_bytes, resident_memory_bytes

    program = CONTENDERS[job["program"]](Path(job["folder"]), job)
    program.request(prompt_ids(program.vocab_size, WARM_TOKENS), 4)
    loaded = resident_memory_bytes()
    prefill, steps = program.request(prompt_ids(program.vocab_size, max(job["length"], 1)), job["decode_tokens"])
    return {"prefill_s": prefill, "decode_s": steps, "loaded_bytes": loaded, "peak_bytes": peak_memory_bytes()}


def gate(job: dict[str, Any]) -> dict[str, Any]:
    """Logits of one program for the gate's prompt, into a file."""
    import numpy as np

    if job["program"] == "llama.cpp":
        program: Any = LlamaCpp(Path(job["folder"]), job, logits_all=True)
    else:
        program = CONTENDERS[job["program"]](Path(job["folder"]), job, job["dtype"])
    np.save(job["logits"], program.logits(prompt_ids(program.vocab_size, job["length"])))
    return {}


def main(argument: str) -> None:
    """Do the job and print its result."""
    import torch

    job = json.loads(argument)
    torch.set_num_threads(job["threads"])
    result: dict[str, Any] = {}
    if job["job"] == "build":
        build(Path(job["config"]), Path(job["folder"]))
    elif job["job"] == "convert":
        convert(Path(job["folder"]), job["weights"])
    else:
        result = run(job) if job["job"] == "run" else gate(job)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
