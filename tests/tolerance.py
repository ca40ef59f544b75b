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
    ("rms norm", "float32"): Tolerance(1e-6, 1e-5, 5e-7, "mean of squares by a norm instead of a mean"),
    ("rms norm", "bfloat16"): Tolerance(1e-3, 1e-2, 0.0, "one rounding step where the float32 rows straddle it"),
    ("rope distance", "float32"): Tolerance(5e-3, 5e-3, 1e-3, "float32 angles at position 3000"),
    ("selected score mass", "float32"): Tolerance(1e-3, 1e-5, 1e-4, "dot products summed in another order"),
    ("sparse mla", "float32"): Tolerance(1e-5, 1e-5, 1e-6, "softmax and sums in another order"),
    ("sparse mla", "bfloat16"): Tolerance(3e-2, 2e-2, 1e-2, "weights rounded to bfloat16 before the sum"),
    ("experts", "float32"): Tolerance(1e-4, 1e-5, 1e-5, "products summed in another order"),
    ("experts", "bfloat16"): Tolerance(0.5, 4e-2, 0.25, "inner activations and outputs rounded to bfloat16"),
    ("logits between forms", "float32"): Tolerance(1e-4, 1e-4, 6e-6, "sums in another order"),
    ("mean total variation", "bfloat16"): Tolerance(6e-2, 0.0, 3.2e-2, "six random layers; some tokens change experts"),
    ("draft layer", "float64"): Tolerance(
        2e-6, 0.0, 3.8e-7, "cosines and sines of rotary angles are float32 in every dtype"
    ),
    ("draft layer", "float32"): Tolerance(1e-4, 0.0, 1.0, "float32 rounding over four chained steps against float64"),
}
