"""A text in Markdown as it is read: its paragraphs stand apart. Qt measures that by points, which a font in pixels has none of."""

from __future__ import annotations

from PySide6.QtGui import QTextBlock, QTextCursor, QTextFormat
from PySide6.QtWidgets import QTextBrowser

from app.theme import GAP, GAP_WIDE


def show_markdown(view: QTextBrowser, text: str) -> None:
    view.setMarkdown(text)
    view.document().setDocumentMargin(GAP_WIDE)
    block = view.document().begin()
    while block.isValid():
        if not _is_in_table(block):
            _set_apart(block)
        block = block.next()


def _set_apart(block: QTextBlock) -> None:
    """From what follows; lines of code and entries of a list stay together."""
    kinds = [_kind(one) for one in (block, block.next())]
    is_within = kinds[0] == kinds[1] != ""
    wanted = block.blockFormat()
    wanted.setBottomMargin(0 if is_within else GAP)
    QTextCursor(block).setBlockFormat(wanted)


def _is_in_table(block: QTextBlock) -> bool:
    return QTextCursor(block).currentTable() is not None


def _kind(block: QTextBlock) -> str:
    """`list`, `code`, or nothing for what stands alone."""
    if not block.isValid():
        return ""
    if block.textList() is not None:
        return "list"
    return "code" if block.blockFormat().hasProperty(QTextFormat.Property.BlockCodeLanguage) else ""
