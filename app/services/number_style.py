"""The language of numbers: how Qt's tables have a language write them, as `numerals` takes it. For the GUI thread."""

from __future__ import annotations

import re

from PySide6.QtCore import QLocale

from app.presenters.numerals import ENGLISH, MINUS, Style

SYSTEM = "system"
LANGUAGES = (
    (SYSTEM, "As the system"),
    ("en", "English"),
    ("zh_CN", "Chinese"),
    ("cs_CZ", "Czech"),
    ("da_DK", "Danish"),
    ("nl_NL", "Dutch"),
    ("fi_FI", "Finnish"),
    ("fr_FR", "French"),
    ("de_DE", "German"),
    ("de_CH", "German (Switzerland)"),
    ("el_GR", "Greek"),
    ("hi_IN", "Hindi"),
    ("it_IT", "Italian"),
    ("ja_JP", "Japanese"),
    ("ko_KR", "Korean"),
    ("nb_NO", "Norwegian"),
    ("pl_PL", "Polish"),
    ("pt_PT", "Portuguese"),
    ("pt_BR", "Portuguese (Brazil)"),
    ("ru_RU", "Russian"),
    ("es_ES", "Spanish"),
    ("es_MX", "Spanish (Mexico)"),
    ("sv_SE", "Swedish"),
    ("tr_TR", "Turkish"),
    ("uk_UA", "Ukrainian"),
)
"""What can be chosen: the name of a locale and that of its language."""
DATE_PARTS = {"d": "%d", "dd": "%d", "M": "%m", "MM": "%m", "yy": "%Y", "yyyy": "%Y"}


def style_of(setting: str) -> Style:
    """`setting`: one of `LANGUAGES`. A language whose digits are others than 0 to 9, or that is not known, has the English style."""
    locale = QLocale.system() if setting == SYSTEM else QLocale(setting)
    if locale.language() == QLocale.Language.C or locale.zeroDigit() != "0":
        return ENGLISH
    # English dates are told apart by no separator: 11/12 is another day in London than in New York. So ISO's stay.
    is_english = locale.language() == QLocale.Language.English
    return Style(
        decimal=locale.decimalPoint(),
        group=locale.groupSeparator(),
        sizes=_sizes(locale),
        least=next((n for n in (4, 5) if len(locale.toString(10 ** (n - 1))) > n), 6),
        minus=MINUS if MINUS in locale.negativeSign() else "-",
        date=ENGLISH.date if is_english else _date(locale.dateFormat(QLocale.FormatType.ShortFormat)),
        clock="%H.%M" if "." in locale.timeFormat(QLocale.FormatType.ShortFormat) else "%H:%M",
    )


def _sizes(locale: QLocale) -> tuple[int, int]:
    """Of the last group and of those before it, as a long number has them."""
    groups = re.findall(r"\d+", locale.toString(123_456_789))
    return (len(groups[-1]), len(groups[-2])) if len(groups) > 2 else ENGLISH.sizes


def _date(qt_format: str) -> str:
    """`dd.MM.yy` as `%d.%m.%Y`: years always have four digits."""
    parts = re.findall(r"'[^']*'|d+|M+|y+|[^dMy']+", qt_format)
    return "".join(DATE_PARTS.get(part, part.strip("'")) for part in parts).strip()
