"""An end that the chat template leaves out, and training put in, is in every export; where it cannot be, the export says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

from qlora_engine.data.templates import choose
from qlora_engine.events import Noticed, RunFinished
from qlora_engine.export import ollama
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.support import go_template
from tests.support.mechanisms import MECHANISMS
from tests.support.run_folders import seal_adapter
from tests.support.template_tokenizer import tokenizer_for
from tests.support.tiny import make_tiny

NO_END = MECHANISMS["no turn has an end, and contents are trimmed"]
CALLS_BEHIND = MECHANISMS["no turn has an end, and calls follow the text"]
CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
]
PROMPT = "User: One?\n\nAssistant: 1<|im_end|>\n\nUser: Two?\n\nAssistant:"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "no-end", chat_template=NO_END)


@pytest.mark.parametrize("format_", ["adapter", "merged"])
def test_plain_transformers_writes_the_end_of_earlier_answers(
    run_of: RunOf, export: Export, base: Path, format_: str
) -> None:
    run = run_of("no-end", base)
    out = export(run, format_)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == PROMPT
    assert "chat template |" not in (out / "README.md").read_text(), "there is nothing to say"
    assert failed(proven(run, out, format_)) == []


def test_the_proof_looks_at_the_end_of_earlier_answers(run_of: RunOf, export: Export, base: Path) -> None:
    run = run_of("no-end", base)
    out = export(run, "merged")
    (out / "chat_template.jinja").write_text(NO_END)
    assert failed(proven(run, out, "merged")) == ["chat template renders the same"]


def test_a_gguf_file_and_a_modelfile_write_it_too(run_of: RunOf, export: Export, base: Path) -> None:
    out = export(run_of("no-end", base), "ollama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    stored = GGUFReader(next(out.glob("*.gguf"))).fields["tokenizer.chat_template"].contents()
    tokenizer.chat_template = stored
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == PROMPT
    found = re.search(r'TEMPLATE """(.*?)"""', (out / "Modelfile").read_text(), re.DOTALL)
    assert found
    assert go_template.render(found[1], CHAT) == PROMPT


def test_an_end_that_cannot_be_written_is_told_in_card_result_and_proof(
    run_of: RunOf, tmp_path: Path
) -> None:
    run = run_of("calls-behind", make_tiny("llama", tmp_path / "base", chat_template=CALLS_BEHIND))
    out = tmp_path / "out"
    events = export_events(run, "merged", out, verify=False)
    assert isinstance(events[-1], RunFinished)
    sentence = events[-1].result["chat_template"]
    assert sentence.startswith("Training put <|im_end|> behind answers that call a tool.")
    assert [e.message for e in events if isinstance(e, Noticed) and e.code == "export.chat_template"] == [
        sentence
    ]
    assert f"| chat template | {sentence} |" in (out / "README.md").read_text()
    assert failed(proven(run, out, "merged")) == [], "it is what was written"
    (out / "chat_template.jinja").write_text(CALLS_BEHIND)
    assert failed(proven(run, out, "merged")) == ["chat template renders the same"]


def test_an_adapter_that_was_kept_without_the_ends_is_exported_with_them(
    run_of: RunOf, export: Export, base: Path, tmp_path: Path
) -> None:
    """Runs of earlier versions have one."""
    run = tmp_path / "old"
    shutil.copytree(run_of("no-end", base), run)
    (run / "adapter" / "chat_template.jinja").write_text(NO_END)
    seal_adapter(run)
    tokenizer = AutoTokenizer.from_pretrained(export(run, "adapter", "old-out"))
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == PROMPT


def test_two_answers_in_a_row_are_told_where_ollama_writes_them_otherwise() -> None:
    """Its language looks at one message at a time, and the next role's token ends an answer."""
    for name, is_told in (("the next role ends a turn", True), ("one marker closes every turn", False)):
        tokenizer = tokenizer_for(MECHANISMS[name])
        template = choose(tokenizer, "auto")
        assert (ollama.lacking(tokenizer, template, adds_bos=False) is not None) is is_told
