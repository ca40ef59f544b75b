"""Parameters of the rotary position embedding, as `config.json` spells them."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

_OLD_NAMES = {"type": "rope_type"}


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """Rotary base and, for `rope_type="yarn"`, the extension of YaRN (arXiv 2309.00071).

    `factor` is the extension ratio; `beta_fast`/`beta_slow` bound the dimensions that are blended, in rotations
    over `original_max_position_embeddings`; `mscale`/`mscale_all_dim` set the temperature as DeepSeek does.
    """

    rope_theta: float = 8_000_000.0
    rope_type: str = "default"
    factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    original_max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        if self.rope_type not in ("default", "yarn"):
            raise ValueError(f"rope_type is {self.rope_type!r}; this package implements 'default' and 'yarn'")
        for name in ("rope_theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is {value!r}; expected a number")
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta is {self.rope_theta!r}; expected a number above 1")
        if self.rope_type == "yarn" and not self.factor >= 1:
            raise ValueError(f"the yarn factor is {self.factor!r}; expected at least 1")

    @classmethod
    def from_public(cls, config: dict[str, Any]) -> RopeParameters:
        """From `rope_parameters` (transformers 5) or from `rope_theta` with `rope_scaling` (before it).

        Raises:
            ValueError: no `rope_theta` anywhere (a guessed base is silently wrong at long range), or unknown keys.
        """
        nested = {_OLD_NAMES.get(key, key): value for key, value in (config.get("rope_parameters") or {}).items()}
        if not nested:
            nested = {_OLD_NAMES.get(key, key): value for key, value in (config.get("rope_scaling") or {}).items()}
        theta = nested.pop("rope_theta", config.get("rope_theta"))
        if theta is None:
            raise ValueError("rope_theta is missing; give it as rope_parameters.rope_theta (8000000 for GLM-5.2)")
        unknown = sorted(set(nested) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"unknown key {unknown[0]!r} in rope_parameters; known are {sorted(cls.__dataclass_fields__)}"
            )
        return cls(rope_theta=theta, **{key: value for key, value in nested.items() if value is not None})

    def to_public(self) -> dict[str, Any]:
        """The `rope_parameters` object of `config.json`."""
        data: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": self.rope_type}
        if self.rope_type == "yarn":
            names = (
                "factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "original_max_position_embeddings",
            )
            data.update((name, getattr(self, name)) for name in names)
        return data

    @property
    def table_scale(self) -> float:
        """Factor on the cosine and sine tables (YaRN section 3.4; DeepSeek divides the two temperatures)."""
        if self.rope_type != "yarn":
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    @property
    def softmax_scale(self) -> float:
        """Factor on the softmax scale of the main attention: the square of the all-dimension temperature."""
        if self.rope_type != "yarn" or not self.mscale_all_dim:
            return 1.0
        return self._temperature(self.mscale_all_dim) ** 2

    def _temperature(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def inverse_frequencies(self, dim: int) -> list[float]:
        """`dim / 2` angles per position step, highest frequency first.

        YaRN keeps dimensions that turn more than `beta_fast` times over the original context, divides by
        `factor` those that turn less than `beta_slow` times, and blends linearly between (section 3.2).
        """
        # Rounded to float32 step by step, as in the programs that trained the public checkpoints: at position 1e5
        # one unit in the last place of a frequency is a hundredth of a radian.
        plain = [_float32(1 / _float32(self.rope_theta ** _float32(2 * i / dim))) for i in range(dim // 2)]
        if self.rope_type != "yarn":
            return plain

        def dimension_of(rotations: float) -> float:
            wavelength = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return dim * math.log(wavelength) / (2 * math.log(self.rope_theta))

        low = max(math.floor(dimension_of(self.beta_fast)), 0)
        high = min(math.ceil(dimension_of(self.beta_slow)), dim - 1)
        width = max(high - low, 0.001)
        result = []
        for i, frequency in enumerate(plain):
            stretched = min(max((i - low) / width, 0.0), 1.0)
            result.append(frequency * (1 - stretched) + frequency / self.factor * stretched)
        return result
