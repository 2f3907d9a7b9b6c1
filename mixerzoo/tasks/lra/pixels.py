"""Defines tasks of images read pixel by pixel, and the two protocols under which the literature reports them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixerzoo.blocks.scan_order import SCAN_ORDERS, check_scan_order
from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.tasks.sequence_classification import SequenceClassification

from .characters import PROTOCOLS

FIRST_ORDER = {"standard": "row", "hgrn": "both"}


@dataclass(frozen=True)
class PixelClassification(SequenceClassification):
    """Reads an image a pixel a token, row after row.

    The protocols' scores are not comparable, so that no setting mixes them:

        standard    one sequence, the rows one after the other (Long Range Arena, S4 and those who compare with them)
        hgrn        scans along both axes of the image, as HGRN and HGRN2 report for Image, Pathfinder and Path-X

    scan_order: None, the protocol's own, which is row or both; under hgrn, others of `blocks/scan_order.py` than row.
    """

    protocol: str = "standard"
    scan_order: str | None = None

    def __post_init__(self) -> None:
        check_choice("task.protocol", self.protocol, PROTOCOLS)
        if self.scan_order is None:
            return
        check_scan_order(self.scan_order)
        if (self.scan_order == "row") != (self.protocol == "standard"):
            allowed = "row" if self.protocol == "standard" else ", ".join(o for o in SCAN_ORDERS if o != "row")
            raise ValueError(
                f"task.scan_order under the protocol {self.protocol} must be one of {allowed}, got "
                f"{self.scan_order!r}; remedy: the other protocol"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Returns height and width."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Returns the channels of a pixel."""
        return 1

    @property
    def input_keywords(self) -> dict[str, Any]:
        height, width = self.size
        order = self.scan_order or FIRST_ORDER[self.protocol]
        return {"channels": self.channels, "max_length": height * width, "scan_order": order, "grid": self.size}
