"""Pictures: every report has panels, and what cannot be drawn is refused before the work."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexshare.eval.bootstrap import Estimate
from indexshare.eval.draft_rounds import Rounds
from indexshare.eval.held_out import HeldOutReport
from indexshare.eval.plots import check_picture, draw
from indexshare.eval.prices import PriceReport, PriceRow
from indexshare.eval.repository import FileGain, RepositoryReport
from indexshare.eval.retrieval import RetrievalReport
from indexshare.eval.suites.base import Panel, Suite
from indexshare.eval.suites.draft import Drafts, DraftSuite
from indexshare.eval.suites.held_out import HeldOutFigures, HeldOutSuite
from indexshare.eval.suites.repository import RepositorySuite
from indexshare.eval.suites.retrieval import RetrievalSuite

FIGURE, ALONE = Estimate(0.5, (0.4, 0.7)), Estimate(0.5, None)
HELD_OUT = HeldOutReport(
    files=2, num_bytes=10, max_tokens=600, sparse=1.0, full=1.0, xz=2.0, position_edges=(0, 256, 512, 600),
    position_bits=(3.0, 2.0, 1.0), windows=4, sparse_interval=None, full_interval=None, below_xz_interval=None,
    price_interval=None,
)  # fmt: skip


def price(length: int, other: Estimate | None) -> PriceRow:
    return PriceRow(
        length=length, selection=FIGURE, full=FIGURE, price_of_sparsity=FIGURE, every_layer_full=other,
        price_of_sharing=other,
    )  # fmt: skip


def reports() -> list[tuple[Suite[Any], Any]]:
    gain = FileGain(name="a", tokens=3, num_bytes=9, context_tokens=7, context_files=1, alone=9.0, with_package=8.0)
    prices = PriceReport(files=2, tokens=99, num_bytes=300, rows=(price(2048, None), price(8192, ALONE)))
    needle = RetrievalReport(
        task="needle", attention=("selection", "recent"), lengths=(512, 1024), depths=(0.25, 0.75),
        asked=((2, 2), (2, 2)), right={"selection": ((2, 2), (2, 1)), "recent": ((0, 0), (0, 1))},
    )  # fmt: skip
    repository = RepositoryReport(
        context=100, files=1, tokens=3, mean_context_tokens=7.0, alone=ALONE, with_package=ALONE, gain=FIGURE,
        by_file=(gain,),
    )  # fmt: skip
    rounds = Rounds(
        drafter="mtp", temperature=1.0, kind="all", prompts=2, rounds=3, accepted_length=FIGURE, tokens_per_step=FIGURE,
        places=(FIGURE, ALONE),
    )  # fmt: skip
    draft = Drafts(
        files=2, tokens=9, max_tokens=9, agreement=(FIGURE, ALONE), accepted=(FIGURE, None), trunk_right=FIGURE,
        rounds=(rounds,),
    )  # fmt: skip
    return [
        (HeldOutSuite(), HeldOutFigures(model="nano", held_out=HELD_OUT, prices=prices)),
        (RetrievalSuite("needle"), needle),
        (RepositorySuite(), repository),
        (DraftSuite(), draft),
    ]


def panels(reports: list[tuple[Suite[Any], Any]]) -> list[Sequence[Panel]]:
    return [row for suite, report in reports for row in suite.pictures(report)]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_all_reports_in_one_picture(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"picture{suffix}"
    draw(panels(reports()), file, "nano")
    assert file.stat().st_size > 5000


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    for file, message in ((tmp_path / "a.bmp", "ends in one of .png"), (tmp_path / "no" / "a.png", "create it first")):
        with pytest.raises(ValueError, match=message):
            check_picture(file)
    pytest.importorskip("matplotlib")
    empty = replace(HELD_OUT, position_edges=(), position_bits=(), windows=0)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(
            panels([(HeldOutSuite(), HeldOutFigures(model="nano", held_out=empty, prices=None))]),
            tmp_path / "a.png",
            "nano",
        )


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"indexshare\[plots\]"):
        check_picture(tmp_path / "a.png")
