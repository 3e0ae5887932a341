"""What the visual language is made of: the colours of each theme, the type scale, spacing."""

from __future__ import annotations

from dataclasses import dataclass

FAMILY = "Inter"
SMALL, NORMAL, LARGE, TITLE, HUGE = 12, 13, 15, 20, 28
GAP, GAP_WIDE, GAP_PAGE = 8, 16, 24
RADIUS = 6


@dataclass(frozen=True)
class Tokens:
    """The colours of one theme, as #rrggbb."""

    is_dark: bool
    background: str
    panel: str
    raised: str
    line: str
    text: str
    quiet: str
    accent: str
    on_accent: str
    accent_soft: str
    good: str = "#2EA36A"
    warning: str = "#C98A12"
    bad: str = "#D64545"


DARK = Tokens(
    True, "#14161A", "#1B1E24", "#232831", "#2A2F38", "#E7EAF0", "#9AA4B2", "#5B9DFF", "#0B1220", "#1E2C44",
    good="#3DBB7C", warning="#E0A63A", bad="#F06A6A",
)  # fmt: skip
LIGHT = Tokens(
    False, "#F6F7F9", "#FFFFFF", "#EEF1F5", "#DADFE6", "#1A1D23", "#5A6472", "#1A60CF", "#FFFFFF", "#E3EDFD",
    good="#197446", warning="#8A5B00", bad="#BC3030",
)  # fmt: skip

CONTRAST = Tokens(
    True, "#000000", "#0A0A0A", "#1A1A1A", "#9A9A9A", "#FFFFFF", "#D6D6D6", "#7CC4FF", "#000000", "#0B2A4A",
    good="#5FE39B", warning="#FFC94D", bad="#FF9A9A",
)  # fmt: skip
"""Text at 7:1 and edges of controls at 4.5:1 on every ground."""
THEMES = {"dark": DARK, "light": LIGHT, "contrast": CONTRAST}
