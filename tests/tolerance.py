"""The only tolerances: one entry per operation and dtype, with what was observed and why it is not zero.

Use as `assert_close(a, b, **TOL["prefill logits", "float32"].bounds)`, or compare a largest difference with `.atol`.
A tolerance is a few times the observed difference, or the bar that a requirement sets.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Absolute and relative bound, the largest difference seen when the entry was written, and its cause."""

    atol: float
    rtol: float
    observed: float
    cause: str

    @property
    def bounds(self) -> dict[str, float]:
        """Keyword arguments of `torch.testing.assert_close`."""
        return {"atol": self.atol, "rtol": self.rtol}


TOL: dict[tuple[str, str], Tolerance] = {
    ("public prefill logits", "float32"): Tolerance(
        1e-4, 0.0, 4.4e-5, "order of summation: sparse and absorbed attention here, masked and expanded there"
    ),
    ("public decode logits", "float32"): Tolerance(
        1e-4, 0.0, 4.0e-5, "as for prefill, and attention over one query sums in another order than over many"
    ),
    ("sampling probabilities", "float64"): Tolerance(
        1e-14, 1e-12, 4.4e-16, "sums over the kept tokens in another order than the reference"
    ),
    ("engine logprobs", "float32"): Tolerance(
        1e-4, 0.0, 2.4e-6, "paged decode and one forward pass over everything sum in another order"
    ),
    ("operation", "float64"): Tolerance(1e-12, 1e-10, 4e-15, "a formula and its faster form sum in another order"),
    ("rms norm", "float32"): Tolerance(1e-6, 1e-5, 5e-7, "mean of squares by a norm instead of a mean"),
    ("rms norm", "bfloat16"): Tolerance(1e-3, 1e-2, 0.0, "one rounding step where the float32 rows straddle it"),
    ("rotation", "float32"): Tolerance(1e-6, 1e-5, 5e-7, "products fused with sums"),
    ("rotation", "bfloat16"): Tolerance(1e-3, 1e-2, 0.0, "one rounding step where the float32 values straddle it"),
    ("swiglu", "float32"): Tolerance(1e-6, 1e-5, 1e-6, "another exponential"),
    ("swiglu", "bfloat16"): Tolerance(1e-3, 1.6e-2, 0.0, "two rounding steps where the float32 values straddle them"),
    ("wide product", "float32"): Tolerance(2e-5, 1e-5, 4e-6, "sums in another order"),
    ("rope distance", "float32"): Tolerance(5e-3, 5e-3, 1e-3, "float32 angles at position 3000"),
    ("selected score mass", "float32"): Tolerance(1e-3, 1e-5, 1e-4, "dot products summed in another order"),
    ("sparse mla", "float32"): Tolerance(1e-5, 1e-5, 1e-6, "softmax and sums in another order"),
    ("sparse mla", "bfloat16"): Tolerance(3e-2, 2e-2, 1e-2, "weights rounded to bfloat16 before the sum"),
    ("sparse mla gradient", "float32"): Tolerance(1e-6, 5e-6, 8e-7, "relative norm; sums in another order"),
    ("sparse mla gradient", "bfloat16"): Tolerance(
        1e-2, 2e-2, 6.6e-3, "relative norm; weights and their gradients rounded before the products"
    ),
    ("indexer kl", "bfloat16"): Tolerance(0.0, 1.5e-2, 4.5e-3, "relative norms; products rounded to bfloat16"),
    ("log-sum-exp", "float32"): Tolerance(1e-5, 1e-6, 1e-6, "logits and their sum in another order"),
    ("experts", "float32"): Tolerance(1e-4, 1e-5, 1e-5, "products summed in another order"),
    ("experts", "bfloat16"): Tolerance(0.5, 4e-2, 0.25, "inner activations and outputs rounded to bfloat16"),
    ("products of experts", "float32"): Tolerance(1e-5, 1e-5, 1e-6, "products summed in another order"),
    ("products of experts", "bfloat16"): Tolerance(
        4e-2, 2e-2, 1.6e-2, "inner activations and each expert's output rounded to bfloat16"
    ),
    ("logits between forms", "float32"): Tolerance(1e-4, 1e-4, 6e-6, "sums in another order"),
    ("decode step", "float32"): Tolerance(1e-4, 1e-4, 1.1e-5, "sums in another order, attention always absorbed"),
    ("decode step, rounded caches", "float32"): Tolerance(
        1e-3, 0.0, 5.0e-5, "mean total variation; a value on the border of two codes gets one or the other"
    ),
    ("decode step, packed weights", "float32"): Tolerance(
        1e-2, 0.0, 1.4e-3, "activations as whole numbers of 16 bits per group of 32"
    ),
    ("decode step", "bfloat16"): Tolerance(
        3e-2, 0.0, 8.9e-3, "mean total variation; sums in another order, rounded in between"
    ),
    ("decode step, rounded choices", "bfloat16"): Tolerance(
        3e-2, 0.0, -8e-4, "mean total variation; which experts and tokens rounding changes is chance"
    ),
    ("llama.cpp graph", "float32"): Tolerance(5e-4, 0.0, 1.8e-4, "attention, router and experts sum in another order"),
    ("llama.cpp nats per token", "float32"): Tolerance(
        1e-3, 0.0, 2.1e-4, "at a few queries a near-tied index score chooses another token"
    ),
    ("q8_0 logits", "float32"): Tolerance(0.1, 0.0, 4.9e-2, "root mean square over that of the logits; 8-bit weights"),
    ("mean total variation", "bfloat16"): Tolerance(6e-2, 0.0, 3.2e-2, "six random layers; some tokens change experts"),
    ("draft layer", "float64"): Tolerance(
        2e-6, 0.0, 3.8e-7, "cosines and sines of rotary angles are float32 in every dtype"
    ),
    ("draft layer", "float32"): Tolerance(
        1e-4, 0.0, 1.5e-5, "float32 rounding over four chained steps against float64"
    ),
    ("orthogonal singular values", "float32"): Tolerance(
        0.33, 0.0, 0.318, "five Newton-Schulz steps end between 0.68 and 1.21 by design"
    ),
    ("orthogonal singular values", "bfloat16"): Tolerance(0.36, 0.0, 0.341, "the same band, and bfloat16 products"),
    ("orthogonal stack", "float32"): Tolerance(1e-5, 1e-5, 2e-6, "batched products sum in another order"),
    ("muon update size", "float32"): Tolerance(5e-2, 0.0, 3.7e-2, "singular values within their band, not one"),
    ("muon against torch", "bfloat16"): Tolerance(0.0, 4e-2, 2.2e-2, "bfloat16 before, not after, the first division"),
    ("clipped norm", "float32"): Tolerance(1e-7, 1e-5, 1e-7, "norm of norms in another order"),
    ("next-token loss", "float64"): Tolerance(1e-13, 1e-12, 4e-15, "sums over chunks in another order"),
    ("next-token loss", "float32"): Tolerance(2e-6, 1e-5, 1.9e-6, "sums over chunks in another order"),
    ("next-token loss", "bfloat16"): Tolerance(
        1e-2, 1e-2, 2.6e-2, "logits rounded to bfloat16, float32 in the reference"
    ),
    ("next-token gradient", "bfloat16"): Tolerance(
        0.0, 3e-2, 1.2e-2, "relative norm; probabilities rounded to bfloat16"
    ),
    ("draft loss", "float64"): Tolerance(0.0, 1e-12, 1e-15, "one row at a time sums in another order"),
    ("micro-batches", "loss"): Tolerance(0.0, 1e-9, 1e-12, "shares of a float64 mean added in another order"),
    ("micro-batches", "float32"): Tolerance(1e-7, 1e-4, 1e-6, "shares added up in float32"),
    ("causal attention", "float32"): Tolerance(5e-6, 1e-5, 1.2e-6, "softmax and sums in float32 and by blocks"),
    ("causal attention", "bfloat16"): Tolerance(0.0, 1.5e-2, 5.4e-3, "relative norm; scores and weights rounded"),
    ("causal attention gradient", "float32"): Tolerance(1e-5, 1e-5, 2.9e-6, "sums over blocks in another order"),
    ("causal attention gradient", "bfloat16"): Tolerance(
        0.0, 4e-2, 2.1e-2, "relative norm; scores, weights and their gradients rounded"
    ),
    ("experts gradient", "float64"): Tolerance(0.0, 1e-12, 1e-15, "relative norm; products summed in another order"),
    ("experts gradient", "bfloat16"): Tolerance(0.0, 4e-2, 1.7e-2, "relative norm; inner activations rounded"),
    ("held-out bits", "float32"): Tolerance(0.0, 1e-5, 3e-7, "float32 losses of windows added in another order"),
    ("public prefill logits of nano", "float32"): Tolerance(1e-4, 0.0, 1.1e-5, "as for prefill, trained weights"),
    ("public loss of nano", "float32"): Tolerance(0.0, 1e-3, 3.3e-5, "equal scores at the threshold, kept differently"),
    ("public prefill logits of pico", "float32"): Tolerance(1e-4, 0.0, 1.9e-5, "as for prefill, trained weights"),
    ("public loss of pico", "float32"): Tolerance(0.0, 1e-3, 0.0, "equal scores at the threshold, kept differently"),
    ("bits of two seeds", "bfloat16"): Tolerance(0.0, 2e-2, 1.9e-3, "other weights and another order of the data"),
    ("bootstrap interval", "float64"): Tolerance(0.1, 0.0, 3e-2, "2,000 resamples; in parts of the interval"),
    ("bits in a batch", "float32"): Tolerance(1e-4, 1e-5, 4e-6, "products over more rows sum in another order"),
}
