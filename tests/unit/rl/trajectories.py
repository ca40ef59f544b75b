"""Small trajectories for tests, built from a picture of their tokens."""

import numpy as np

from indexshare.rl.trajectory import NOT_SAMPLED, Segment, Source, Trajectory

LETTERS = {
    "s": Source.SYSTEM,
    "u": Source.USER,
    "a": Source.ACTION,
    "o": Source.OBSERVATION,
    "m": Source.SUMMARY,
    "c": Source.COPIED,
}


def segment(picture: str, *, version: int = 0, seed: int = 0, frozen: str = "") -> Segment:
    """One token per letter of the picture; sampled ones are trained unless their letter is in `frozen`."""
    rng = np.random.default_rng([seed, len(picture)])
    sampled = np.array([letter in "am" for letter in picture])
    return Segment(
        tokens=rng.integers(0, 50, len(picture)),
        sources=np.array([LETTERS[letter] for letter in picture]),
        mask=sampled & np.array([letter not in frozen for letter in picture]),
        logprobs=np.where(sampled, -rng.random(len(picture)), 0.0),
        versions=np.where(sampled, version, NOT_SAMPLED),
        rewards=np.zeros(len(picture)),
    )


def trajectory(*pictures: str, reward: float = 1.0, name: str = "t", group: str = "", version: int = 0) -> Trajectory:
    parts = tuple(segment(picture, version=version, seed=n) for n, picture in enumerate(pictures))
    return Trajectory(name=name, task="test", segments=parts, reward=reward, group=group)
