"""The chat job: both sides of a run, streaming, sampling, interrupts, and questions that cannot be answered."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_engine.client import Engine, InlineEngine, ProcessEngine
from qlora_engine.control import Control
from qlora_engine.data.templates import choose, render
from qlora_engine.evaluate import chat, generate
from qlora_engine.evaluate.chat import chat_job
from qlora_engine.events import (
    TERMINAL,
    AnswerFinished,
    Event,
    ModelLoaded,
    Noticed,
    RunFailed,
    RunFinished,
    RunStopped,
    SessionReady,
    TokenStreamed,
)
from qlora_engine.jobs import ChatJob
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from tests.support import tiny_runs

QUESTION = [{"role": "user", "content": "Say water 3"}]
SHORT = {"max_new_tokens": 16}


class Talk:
    """A chat in a thread of its own, driven as the window does: commands in, events out."""

    def __init__(
        self, source: object, settings: dict[str, Any] | None = None, engine: Engine | None = None
    ) -> None:
        self.engine = engine or InlineEngine()
        self.seen: list[Event] = []
        self._events: queue.Queue[Event] = queue.Queue()
        job = ChatJob(str(source), {"device": "cpu", **(settings or {})})
        self._thread = threading.Thread(target=self._listen, args=(job,), daemon=True)
        self._thread.start()

    def _listen(self, job: ChatJob) -> None:
        for event in self.engine.run(job):
            self._events.put(event)

    def until(self, *kinds: type[Event], timeout: float = 60.0) -> Event:
        """The next event of one of `kinds`; fails on an unexpected end."""
        while True:
            event = self._events.get(timeout=timeout)
            self.seen.append(event)
            if isinstance(event, kinds):
                return event
            assert not isinstance(event, TERMINAL), event

    def ask(self, request: int = 1, messages: Any = QUESTION, **more: Any) -> None:
        settings = {**SHORT, **more.pop("settings", {})}
        self.engine.send(
            {"command": "ask", "request": request, "messages": messages, "settings": settings, **more}
        )

    def answer(self, side: str = "tuned", **more: Any) -> AnswerFinished:
        self.ask(sides=[side], **more)
        event = self.until(AnswerFinished)
        assert isinstance(event, AnswerFinished)
        return event

    def end(self) -> Event:
        self.engine.request_stop()
        event = self.until(*TERMINAL)
        self._thread.join(30)
        assert not self._thread.is_alive()
        return event


@pytest.fixture(scope="module")
def talk(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """One chat with the trained run for all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(tmp_path_factory.mktemp("home")))
        talk = Talk(trained)
        talk.until(SessionReady)
        yield talk
        end = talk.end()
        assert isinstance(end, RunFinished), end


def plain_answers(model_dir: Path, adapter: Path) -> dict[str, str]:
    """Greedy answers of plain transformers and PEFT in NF4 with double quantization."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    loading.keep_weights_as_they_are(model)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]

    def answer() -> str:
        new = tuned.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False,
            eos_token_id=[2, 4], pad_token_id=0,
        )[0, prompt.shape[1] :]  # fmt: skip
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()

    with torch.no_grad():
        found = {"tuned": answer()}
        with tuned.disable_adapter():
            found["base"] = answer()
    return found


def test_both_sides_answer_as_plain_peft_does(talk: Talk, model_dir: Path, trained: Path) -> None:
    expected = plain_answers(model_dir, trained / "adapter")
    assert expected["tuned"] == "water plants fox dog"
    assert expected["base"] != expected["tuned"]
    talk.ask(7, sides=["base", "tuned"])
    first, second = talk.until(AnswerFinished), talk.until(AnswerFinished)
    assert [(e.request, e.side, e.text) for e in (first, second)] == [  # type: ignore[attr-defined]
        (7, "base", expected["base"]),
        (7, "tuned", expected["tuned"]),
    ]


def test_the_session_says_what_is_loaded(talk: Talk, trained: Path, model_dir: Path) -> None:
    (ready,) = [e for e in talk.seen if isinstance(e, SessionReady)]
    (loaded,) = [e for e in talk.seen if isinstance(e, ModelLoaded)]
    assert loaded.report["quant_type"] == "nf4"
    assert loaded.report["is_double_quant"] is True
    assert ready.facts["run_id"] == "trained"
    assert ready.facts["model"] == str(model_dir)
    assert ready.facts["sides"] == ["base", "tuned"]
    assert ready.facts["has_adapter"] is True
    assert ready.facts["max_positions"] == 256


def test_the_answer_streams_in_pieces_that_make_the_text(talk: Talk) -> None:
    start = len(talk.seen)
    answer = talk.answer()
    pieces = [e for e in talk.seen[start:] if isinstance(e, TokenStreamed)]
    assert len(pieces) > 1
    assert {(p.request, p.side) for p in pieces} == {(1, "tuned")}
    assert "".join(p.text for p in pieces).strip() == answer.text


def test_sampling_follows_its_seed_and_temperature(talk: Talk) -> None:
    def sampled(**settings: Any) -> str:
        return talk.answer(settings={"do_sample": True, "temperature": 2.0, **settings}).text

    assert sampled(seed=1) == sampled(seed=1)
    assert len({sampled(seed=n) for n in range(4)}) > 1
    assert sampled(seed=1, top_k=1) == talk.answer().text
    assert sampled(seed=1, temperature=0.01) == talk.answer().text


def test_strength_goes_from_base_to_tuned_and_leaves_no_trace(talk: Talk) -> None:
    tuned, base = talk.answer().text, talk.answer("base").text
    assert talk.answer(settings={"adapter_strength": 0.0}).text == base
    assert talk.answer(settings={"adapter_strength": 1.0}).text == tuned
    assert talk.answer().text == tuned


def test_strength_scales_the_logits_as_scaling_the_adapter_does(trained: Path) -> None:
    chat = loaded(trained)
    prompt = generate.prompt_ids(chat.tokenizer, QUESTION)
    with torch.no_grad():
        with chat.speaking("tuned", 0.5) as model:
            half = model(prompt).logits.clone()
        with chat.speaking("tuned") as model:
            whole = model(prompt).logits.clone()
        with chat.speaking("tuned") as model:
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data *= 0.5
            torch.testing.assert_close(model(prompt).logits, half)
    assert float((whole - half).abs().max()) > 0.01


def loaded(run: Path) -> Any:
    """A run's base with its adapter, as the chat loads it."""
    from qlora_engine.evaluate import origin, session

    return returned(session.load_chat_model(origin.find_origin(str(run), {"device": "cpu"}), Control()))


def returned(generator: Any) -> Any:
    """What a generator returns, its events thrown away."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def test_an_interrupt_cuts_the_answer_and_those_asked_before_it(talk: Talk) -> None:
    talk.ask(1, sides=["tuned"], settings={"max_new_tokens": 200, "repetition_penalty": 1.3})
    talk.ask(2, sides=["base"])
    talk.until(TokenStreamed)
    talk.engine.send({"command": "interrupt"})
    cut, waiting = talk.until(AnswerFinished), talk.until(AnswerFinished)
    assert isinstance(cut, AnswerFinished)
    assert isinstance(waiting, AnswerFinished)
    assert not cut.is_complete
    assert 0 < cut.tokens < 200
    assert (waiting.request, waiting.text, waiting.is_complete) == (2, "", False)
    after = talk.answer(request=3)
    assert after.request == 3
    assert after.text


def test_an_interrupt_while_nothing_is_said_does_nothing(talk: Talk) -> None:
    talk.engine.send({"command": "interrupt"})
    assert talk.answer().text


def test_the_model_is_told_apart_from_one_cut_by_length(talk: Talk) -> None:
    assert not talk.answer(settings={"max_new_tokens": 1}).is_complete
    assert talk.answer(settings={"max_new_tokens": 100}).is_complete  # trained to end its turn


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"settings": {"temprature": 1.0}}, "chat.setting", "temprature"),
        ({"settings": {"temperature": 0}}, "chat.setting", "from 0.01 to 100"),
        ({"settings": {"max_new_tokens": 2.5}}, "chat.setting", "whole number"),
        ({"settings": {"max_new_tokens": 0}}, "chat.setting", "from 1"),
        ({"settings": {"adapter_strength": -1}}, "chat.setting", "from 0 to 4"),
        ({"messages": []}, "chat.messages", "no question"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "chat.messages", "no question"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "chat.messages", "no question"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "chat.too_long", "at most 256"),
        ({"sides": ["better"]}, "chat.side", "better"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why_and_ends(
    talk: Talk, more: dict[str, Any], code: str, words: str
) -> None:
    talk.ask(5, **{"sides": ["tuned"], **more})
    notice = talk.until(Noticed)
    assert isinstance(notice, Noticed)
    assert notice.code == code
    assert words in notice.message
    assert notice.hint
    ended = talk.until(AnswerFinished)
    assert isinstance(ended, AnswerFinished)
    assert (ended.request, ended.text, ended.is_complete) == (5, "", False)
    assert talk.answer().text


def test_the_answer_ends_where_the_context_ends(talk: Talk, model_dir: Path) -> None:
    question = [{"role": "user", "content": "water " * 60}]
    answer = talk.answer("base", messages=question, settings={"max_new_tokens": 250})
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = generate.prompt_ids(tokenizer, question).shape[1]
    assert 0 < answer.tokens <= 256 - prompt


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory.gpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory.host"),
    ],
)
def test_an_engine_out_of_memory_ends_the_answer_and_not_the_session(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def explode(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(generate, "answer", explode)
        talk.ask(9, sides=["base", "tuned"])
        notice = talk.until(Noticed)
        assert notice.code == code  # type: ignore[attr-defined]
        ended = [talk.until(AnswerFinished), talk.until(AnswerFinished)]
    assert [(e.side, e.text) for e in ended] == [("base", ""), ("tuned", "")]  # type: ignore[attr-defined]
    assert talk.answer().text


def test_a_plain_model_has_only_its_base(model_dir: Path) -> None:
    talk = Talk(model_dir)
    ready = talk.until(SessionReady)
    assert ready.facts["sides"] == ["base"]  # type: ignore[attr-defined]
    assert ready.facts["has_adapter"] is False  # type: ignore[attr-defined]
    assert talk.answer("base").text
    talk.ask(sides=["tuned"])
    assert "without an adapter" in talk.until(Noticed).message  # type: ignore[attr-defined]
    end = talk.end()
    assert isinstance(end, RunFinished)
    assert end.result["answers"] == 1


def test_a_stopped_run_speaks_with_its_best_checkpoint(trained: Path, talk: Talk, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(trained, stopped)
    shutil.rmtree(stopped / "adapter")
    other = Talk(stopped)
    ready = other.until(SessionReady)
    assert ready.facts["adapter_step"] == 60  # type: ignore[attr-defined]
    assert other.answer().text == talk.answer().text
    other.end()


def test_a_run_with_nothing_learned_yet_says_so(trained: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(trained, empty, ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    talk = Talk(empty)
    end = talk.until(*TERMINAL)
    assert isinstance(end, RunFailed)
    assert end.code == "chat.no_adapter"


def test_another_base_is_refused(trained: Path, model_dir: Path, tmp_path: Path) -> None:

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = RunFolder(run).record()
    record["model"]["fingerprint"]["model.safetensors"] = "0" * 64
    RunFolder(run).write_record(record)
    end = Talk(run).until(*TERMINAL)
    assert isinstance(end, RunFailed)
    assert end.code == "export.wrong_base"


def test_a_name_that_is_neither_run_nor_model_is_an_input_error() -> None:
    end = Talk("no-such-thing").until(*TERMINAL)
    assert isinstance(end, RunFailed)
    assert end.is_input_error


def test_an_unknown_setting_of_the_job_is_refused_with_the_closest(model_dir: Path) -> None:
    end = Talk(model_dir, {"adapter_strenght": 1.0}).until(*TERMINAL)
    assert isinstance(end, RunFailed)
    assert "adapter_strength" in end.hint


def test_settings_of_the_job_hold_for_every_question(model_dir: Path) -> None:
    talk = Talk(model_dir, {"max_new_tokens": 3})
    talk.until(SessionReady)
    talk.engine.send({"command": "ask", "request": 1, "messages": QUESTION})
    answer = talk.until(AnswerFinished)
    assert answer.tokens == 3  # type: ignore[attr-defined]
    talk.end()


def test_stop_while_loading_ends_at_once(trained: Path) -> None:
    control = Control()
    events = chat_job(ChatJob(str(trained), {"device": "cpu"}), control)
    next(events)
    control.request_stop()
    from qlora_engine.errors import Cancelled

    with pytest.raises(Cancelled):
        list(events)


def test_stop_in_the_middle_of_an_answer_ends_the_chat(trained: Path) -> None:
    talk = Talk(trained)
    talk.until(SessionReady)
    talk.ask(sides=["base"], settings={"max_new_tokens": 200, "repetition_penalty": 1.3})
    talk.until(TokenStreamed)
    assert isinstance(talk.end(), RunFinished)
    cut = [e for e in talk.seen if isinstance(e, AnswerFinished)]
    assert len(cut) == 1
    assert not cut[0].is_complete


def test_a_reader_that_leaves_stops_the_answer(trained: Path) -> None:
    control = Control()
    events = chat_job(ChatJob(str(trained), {"device": "cpu"}), control)
    for event in events:
        if isinstance(event, SessionReady):
            break
    before = threading.active_count()
    control.handle(
        {
            "command": "ask", "request": 1, "messages": QUESTION, "sides": ["base"],
            "settings": {"max_new_tokens": 200, "repetition_penalty": 1.3},
        }
    )  # fmt: skip
    assert isinstance(next(events), TokenStreamed)
    events.close()  # type: ignore[attr-defined]
    workers = [t for t in threading.enumerate() if t.name == "engine-work"]
    for worker in workers:
        worker.join(10)
    assert threading.active_count() <= before


def test_the_system_prompt_of_the_training_is_put_first(model_dir: Path, tmp_path: Path) -> None:
    config = tiny_runs.tiny_config(
        model_dir, tiny_runs.data_file(tmp_path), tmp_path / "runs",
        data__system_prompt="Speak of seven dogs.", training__max_steps=1,
    )  # fmt: skip
    run = tiny_runs.finished_run(config)
    talk = Talk(run)
    ready = talk.until(SessionReady)
    assert ready.facts["system_prompt"] == "Speak of seven dogs."  # type: ignore[attr-defined]
    implied = talk.answer("base").text
    said = talk.answer(
        "base", messages=[{"role": "system", "content": "Speak of seven dogs."}, *QUESTION]
    ).text
    other = talk.answer("base", messages=[{"role": "system", "content": "2024"}, *QUESTION]).text
    assert implied == said != other
    talk.end()


def test_dora_is_not_scaled(model_dir: Path, tmp_path: Path) -> None:
    config = tiny_runs.tiny_config(
        model_dir, tiny_runs.data_file(tmp_path), tmp_path / "runs", lora__dora=True, training__max_steps=1
    )
    talk = Talk(tiny_runs.finished_run(config))
    ready = talk.until(SessionReady)
    assert ready.facts["can_scale_adapter"] is False  # type: ignore[attr-defined]
    talk.ask(sides=["tuned"], settings={"adapter_strength": 0.5})
    assert talk.until(Noticed).code == "chat.strength"  # type: ignore[attr-defined]
    assert talk.until(AnswerFinished).text == ""  # type: ignore[attr-defined]
    assert talk.answer().text
    talk.end()


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(trained: Path, talk: Talk) -> None:
    other = Talk(trained, engine=ProcessEngine())
    other.until(SessionReady, timeout=120)
    assert other.answer().text == talk.answer().text
    assert other.answer("base").text == talk.answer("base").text
    end = other.end()
    assert isinstance(end, RunFinished)
    assert end.result["answers"] == 2


def test_a_template_by_name_ends_on_its_own_end_token(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.eos_token = "</s>"
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in generate.end_ids(model, tokenizer, "alpaca")
    assert end in generate.end_ids(model, tokenizer, "chatml")


def test_answering_leaves_random_numbers_and_training_mode_alone(model_dir: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model_dir),
        AutoTokenizer.from_pretrained(model_dir),
    )
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    generate.answer(model, tokenizer, QUESTION, generate.GenerationSettings(max_new_tokens=4, do_sample=True))
    assert torch.equal(torch.rand(2), expected)
    assert model.training


def test_stopped_while_loading_through_an_engine_is_a_stop(trained: Path) -> None:
    engine = InlineEngine()
    engine.request_stop()
    assert isinstance(list(engine.run(ChatJob(str(trained), {"device": "cpu"})))[-1], RunStopped)


def test_tools_are_put_into_the_prompt_and_refused_when_they_are_none(talk: Talk) -> None:
    tool = {
        "type": "function",
        "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}},
    }
    plain, given = talk.answer("tuned"), talk.answer("tuned", tools=[tool])
    assert plain.calls == ()
    assert given.calls == (), "this model knows no calls, and so makes none"
    assert given.tokens
    talk.ask(sides=["tuned"], tools=["no tool"])
    refused = talk.until(Noticed)
    assert isinstance(refused, Noticed)
    assert refused.code == "chat.tools"
    talk.until(AnswerFinished)


def test_calls_are_read_from_what_the_model_said_with_its_special_tokens(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most models mark a call by them alone, and a person does not see them."""
    said = generate.Answer(
        "tide", 3, 0.1, True, '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
    )
    monkeypatch.setattr(generate, "answer", lambda *_, **__: said)
    found = talk.answer("tuned", tools=[{"name": "tide", "parameters": {"type": "object", "properties": {}}}])
    assert found.text == ""
    assert found.calls is not None
    assert [(call["name"], call["arguments"]) for call in found.calls] == [("tide", {})]
    call = {"type": "function", "function": {"name": "tide", "arguments": {}}}
    assert found.message == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_a_call_and_its_result_are_told_as_they_were_trained(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(model: Any, tokenizer: Any, messages: Any, *_: Any, **more: Any) -> generate.Answer:
        asked.append(
            render(tokenizer, choose(tokenizer, "auto"), messages, is_prompt=True, tools=more["tools"])
        )
        return generate.Answer("fine", 1, 0.1, True, "fine")

    monkeypatch.setattr(generate, "answer", answer)
    monkeypatch.setattr(chat, "_room", lambda *_: None)  # this model sees 256 tokens
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": {"port": "Ostend"}}}
    turns = [
        *QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "high"}
    ]  # fmt: skip
    talk.answer("tuned", messages=turns, tools=[{"name": "tide"}])
    assert '<tool_call>\n{"name": "tide", "arguments": {"port": "Ostend"}}\n</tool_call>' in asked[-1]
    assert "<|im_start|>tool\nhigh<|im_end|>" in asked[-1]


def test_an_answer_keeps_its_special_tokens_beside_its_text(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt, end = generate.prompt_ids(tokenizer, QUESTION), tokenizer.eos_token_id
    model.generate = lambda **_: torch.cat(
        [prompt, torch.tensor([[*tokenizer("so")["input_ids"], end]])], dim=1
    )
    found = generate.continued(model, tokenizer, prompt, [end], generate.GenerationSettings(max_new_tokens=4))
    assert (found.text, found.marked, found.is_complete) == ("so", f"so{tokenizer.eos_token}", True)
