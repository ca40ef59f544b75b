"""Parameters of the rotary position embedding, as `config.json` spells them."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from indexshare.config.arguments import shown

_LARGEST = 3e38  # float32 tables
_POSITIVE = {"factor": (1.0, _LARGEST), "beta_fast": (1e-3, 1e6), "beta_slow": (1e-3, 1e6)}
_POSITIVE |= {"low_freq_factor": (1e-3, 1e6), "high_freq_factor": (1e-3, 1e6)}
_SCALES = {"mscale": (0.0, 1e6), "mscale_all_dim": (0.0, 1e6), "attention_factor": (1e-6, 1e6)}
_BOUNDS = {"rope_theta": (1.0, _LARGEST), **_POSITIVE, **_SCALES}
_ORIGINAL = "original_max_position_embeddings"
# Settings of each scaling, beside `rope_theta`; `attention_factor` is written only where it is given.
_SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", _ORIGINAL, "attention_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
}
LATENT_KINDS = ("default", "yarn")  # what the published programs of latent attention are tried with
ALL_KINDS = tuple(_SETTINGS)


def _check_kind(kind: Any, kinds: Collection[str]) -> None:
    if not isinstance(kind, str) or kind not in kinds:
        known = [repr(name) for name in kinds]
        listed = f"{', '.join(known[:-1])} and {known[-1]}"
        raise ValueError(f"rope_type is {shown(kind)}; this package implements {listed} here")


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """Rotary base and, in `rope_type`, how its frequencies are changed for contexts longer than trained.

    `factor` is the extension ratio.

    * `"linear"` divides all frequencies by it (arXiv 2306.15595).
    * `"dynamic"` changes them for texts beyond `max_position_embeddings` alone, which no model here reads: up to there
      the frequencies are the default ones.
    * `"yarn"` (arXiv 2309.00071): `beta_fast`/`beta_slow` bound the dimensions that are blended, in rotations over
      `original_max_position_embeddings`; `mscale`/`mscale_all_dim` set the temperature as DeepSeek does, unless
      `attention_factor` gives the factor on the tables.
    * `"llama3"` (Llama 3.1) divides frequencies that turn less than `low_freq_factor` times over the original context,
      keeps those that turn more than `high_freq_factor` times, and blends between.
    """

    rope_theta: float = 8_000_000.0
    rope_type: str = "default"
    factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        _check_kind(self.rope_type, ALL_KINDS)
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and name == "attention_factor":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r:.80}; expected a number from {least:g} to {most:g}")
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta is {self.rope_theta!r}; expected a number above 1")
        original = self.original_max_position_embeddings
        if type(original) is not int or not 1 <= original < 2**31:
            raise ValueError(f"original_max_position_embeddings is {original!r:.80}; expected a positive integer")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast is {self.beta_fast!r}, below beta_slow, which is {self.beta_slow!r}")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor is {self.low_freq_factor!r}; expected less than high_freq_factor, which is"
                f" {self.high_freq_factor!r}"
            )

    @classmethod
    def from_public(
        cls, config: dict[str, Any], *, context: int, kinds: Collection[str] = LATENT_KINDS
    ) -> RopeParameters:
        """From `rope_parameters` (transformers 5) or from `rope_theta` with `rope_scaling` (before it).

        Args:
            config: the file's object.
            context: the model's `max_position_embeddings`, which yarn and llama3 extend from where their original is
                not given.
            kinds: the scalings that the architecture has.

        Raises:
            ValueError: no `rope_theta` anywhere (a guessed base is silently wrong at long range), spellings that
                disagree, unknown keys, another scaling, or one without its factor.
        """
        places = {place: config.get(place) or {} for place in ("rope_parameters", "rope_scaling")}
        bases = {place: settings["rope_theta"] for place, settings in places.items() if "rope_theta" in settings}
        bases |= {"the configuration": config["rope_theta"]} if "rope_theta" in config else {}
        bases = {place: base for place, base in bases.items() if base is not None}
        if not bases:
            raise ValueError("rope_theta is missing; give it as rope_parameters.rope_theta (8000000 for GLM-5.2)")
        place, theta = next(iter(bases.items()))
        for other, base in bases.items():
            if base != theta:
                raise ValueError(f"rope_theta is {shown(theta)} in {place}, but {shown(base)} in {other}; keep one")
        read = {place: cls._read(place, said, theta, context, kinds) for place, said in places.items() if said}
        new, old = read.get("rope_parameters"), read.get("rope_scaling")
        if new is None or old is None:
            return new or old or cls(rope_theta=theta)
        if new.rope_type != "default" and new != old:
            raise ValueError("rope_scaling and rope_parameters disagree; keep rope_parameters alone")
        if set(bases) == {"rope_parameters"} and theta != 10000:
            raise ValueError(
                "rope_scaling stands beside rope_parameters, of which transformers then forgets rope_theta; put all of"
                " it into rope_parameters"
            )
        return old

    @classmethod
    def _read(
        cls, place: str, settings: dict[str, Any], theta: Any, context: int, kinds: Collection[str]
    ) -> RopeParameters:
        """One of the two objects, which may say the same in older words."""
        said = {key: value for key, value in settings.items() if value is not None}
        kind = said.pop("rope_type", said.get("type", "default"))
        if said.pop("type", kind) != kind:
            raise ValueError(
                f"rope_type is {shown(kind)} in {place}, but its type is {shown(settings.get('type'))}; keep one"
            )
        for key, neutral in (("partial_rotary_factor", 1), ("truncate", True)):
            value = said.pop(key, neutral)
            if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
                raise ValueError(f"{key} in {place} is {shown(value)}, which is not implemented; expected {neutral!r}")
        unknown = sorted(set(said) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"unknown key {shown(unknown[0])} in {place}; known are {sorted(cls.__dataclass_fields__)}"
            )
        _check_kind(kind, kinds)
        cls._refuse_scaling(place, kind, said)
        if kind != "default" and "factor" not in said:
            example = "as 40 for DeepSeek-V3.2" if kind == "yarn" else "as 8 for Llama 3.1"
            raise ValueError(f"{place} is of type {kind!r} without a factor; give it, {example}")
        if _ORIGINAL in _SETTINGS[kind]:
            said.setdefault(_ORIGINAL, context)
        return cls(**(said | {"rope_theta": theta, "rope_type": kind}))

    @staticmethod
    def _refuse_scaling(place: str, kind: str, said: dict[str, Any]) -> None:
        """Settings of another scaling would be ignored, and gone when the model is saved."""
        for key, value in said.items():
            neutral = key == "rope_theta" or (kind == "default" and key == "factor" and value == 1)
            if key not in _SETTINGS[kind] and not neutral:
                repair = "say rope_type 'yarn', or remove it" if kind == "default" else "remove it"
                raise ValueError(
                    f"{key} in {place} is {shown(value)}, but its rope_type is {kind!r}, which has no such setting; "
                    f"{repair}"
                )

    def to_public(self) -> dict[str, Any]:
        """The `rope_parameters` object of `config.json`."""
        data: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": self.rope_type}
        data.update((name, getattr(self, name)) for name in _SETTINGS[self.rope_type])
        if data.get("attention_factor", 0) is None:
            del data["attention_factor"]
        return data

    @property
    def table_scale(self) -> float:
        """Factor on the cosine and sine tables (YaRN section 3.4; DeepSeek divides the two temperatures)."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
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
        """`dim / 2` angles per position step, highest frequency first."""
        # Rounded to float32 step by step, as in the programs that trained the public checkpoints: at position 1e5
        # one unit in the last place of a frequency is a hundredth of a radian.
        plain = [_float32(1 / _float32(self.rope_theta ** _float32(2 * i / dim))) for i in range(dim // 2)]
        if self.rope_type == "linear":
            return [frequency / self.factor for frequency in plain]
        if self.rope_type == "llama3":
            return [self._by_wavelength(frequency) for frequency in plain]
        return self._by_rotations(plain, dim) if self.rope_type == "yarn" else plain

    def _by_wavelength(self, frequency: float) -> float:
        """Llama 3.1's rule for one frequency."""
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(smooth, 0.0), 1.0)
        return (1 - kept) * frequency / self.factor + kept * frequency

    def _by_rotations(self, plain: list[float], dim: int) -> list[float]:
        """YaRN keeps dimensions that turn more than `beta_fast` times over the original context, divides by
        `factor` those that turn less than `beta_slow` times, and blends linearly between (section 3.2).
        """

        def dimension_of(rotations: float) -> float:
            wavelength = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return dim * math.log(wavelength) / (2 * math.log(self.rope_theta))

        low = max(math.floor(dimension_of(self.beta_fast)), 0)
        high = min(math.ceil(dimension_of(self.beta_slow)), dim - 1)
        width = (high - low) or 0.001  # negative where the whole range lies beyond the last dimension
        result = []
        for i, frequency in enumerate(plain):
            stretched = min(max((i - low) / width, 0.0), 1.0)
            result.append(frequency * (1 - stretched) + frequency / self.factor * stretched)
        return result
