"""The folder for Ollama: its Go template writes what the run's Jinja template writes, and it stops where answers end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qlora_engine.client import InlineEngine
from qlora_engine.data.templates import NAMED, choose, render
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFailed, RunFinished
from qlora_engine.export import ollama
from qlora_engine.jobs import ExportJob
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.support import go_template
from tests.support.tiny import make_tiny, tiny_tokenizer

DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACES = "{% for m in messages %}{{ '<' + m['role'] + '>{{' + m['content'] + '}}' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>{{' }}{% endif %}"
TEMPLATES = {
    **{name: named.jinja for name, named in NAMED.items()},
    "a default system prompt": DEFAULT_SYSTEM,
    "braces": BRACES,
    "a first token and a default": "{{ bos_token }}" + DEFAULT_SYSTEM,
}
CONVERSATIONS = [
    [("user", "What is 2 + 2?")],
    [("system", "Answer in French."), ("user", "What?")],
    [("user", "A"), ("assistant", "B\nb"), ("user", "C {{ .System }}"), ("assistant", "D"), ("user", "E")],
    [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C")],
]


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_go_template_writes_what_the_jinja_template_writes(name: str, adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    chosen = choose(tokenizer, "auto")
    text = ollama.pieces_of(tokenizer, chosen, adds_bos).go()
    for turns in CONVERSATIONS:
        wanted = render(tokenizer, chosen, messages_of(turns), is_prompt=True)
        if adds_bos:
            wanted = wanted.removeprefix("<s>")
        assert go_template.render(text, messages_of(turns)) == wanted


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for m in messages %}{{ loop.index ~ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper + '\n' }}{% endfor %}",
        "{% for m in messages %}{{ m['role'] + ': ' }}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_go_cannot_say_is_refused_with_the_way_out(jinja: str) -> None:
    tokenizer = tiny_tokenizer(jinja)
    with pytest.raises(EngineError, match="cannot be written for Ollama") as caught:
        ollama.pieces_of(tokenizer, choose(tokenizer, "auto"), adds_bos=False)
    assert "GGUF" in caught.value.hint


def test_the_folder_holds_file_and_modelfile_and_passes_every_check(run_of: RunOf, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "ollama")
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./lora-q8_0.gguf\n")
    assert (out / "lora-q8_0.gguf").is_file()
    stops = [json.loads(s) for s in re.findall(r"^PARAMETER stop (.*)$", text, re.MULTILINE)]
    assert stops == ["<|im_end|>", "</s>"]
    assert "PARAMETER num_ctx 256" in text
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    wanted = tokenizer.apply_chat_template(
        messages_of(CONVERSATIONS[3]), tokenize=False, add_generation_prompt=True
    )
    assert go_template.render(template[1], messages_of(CONVERSATIONS[3])) == wanted
    checks = proven(run, out, "ollama")
    assert failed(checks) == [], checks
    assert len(checks) == 13


@pytest.mark.parametrize("spoil", ["FROM ./other.gguf", 'PARAMETER stop "never"'])
def test_a_spoiled_modelfile_fails_its_check(run_of: RunOf, export: Export, spoil: str) -> None:
    run = run_of("lora")
    out = export(run, "ollama")
    file = out / "Modelfile"
    start = spoil.rpartition(" ")[0]
    file.write_text(re.sub(f"^{start} .*$", spoil, file.read_text(), count=1, flags=re.MULTILINE))
    assert proven(run, out, "ollama")["the Modelfile names the file and the end tokens"][0] is False


@pytest.mark.slow
def test_the_folder_is_proven_in_a_process_of_its_own(run_of: RunOf, tmp_path: Path) -> None:
    end = export_events(run_of("lora"), "ollama", tmp_path / "out", dtype="f16")[-1]
    assert isinstance(end, RunFinished), end
    assert end.result["is_proven"], end.result["checks"]


def test_a_run_whose_template_cannot_be_said_is_refused_before_anything_is_written(
    run_of: RunOf, tmp_path: Path
) -> None:
    jinja = "{% for m in messages %}{{ loop.index ~ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
    jinja += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    run = run_of("numbered", make_tiny("llama", tmp_path / "base", chat_template=jinja))
    out = tmp_path / "place" / "out"
    end = list(InlineEngine().run(ExportJob(str(run), "ollama", str(out), {})))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "export.ollama_template"
    assert list(out.parent.iterdir()) == []
