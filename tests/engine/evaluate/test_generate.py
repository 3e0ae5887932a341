"""What a model generated, as the text of an answer."""

from __future__ import annotations

from typing import Any

import torch

from qlora_engine.evaluate.generate import GenerationSettings, continued
from tests.support.template_tokenizer import tokenizer_for


class Saying:
    """A model that says the same to everything."""

    device = torch.device("cpu")
    training = False

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids[0], torch.tensor(self.ids)])[None]


def test_the_end_of_an_answer_is_no_part_of_its_text_though_it_is_no_special_token() -> None:
    """A chat would else go on with an answer that ends twice."""
    tokenizer = tokenizer_for("<stop>")
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    assert stop not in tokenizer.all_special_ids
    said = tokenizer("fine", add_special_tokens=False)["input_ids"]
    for ids, is_complete in (([*said, stop], True), (said, False)):
        answer = continued(
            Saying(ids), tokenizer, torch.tensor([[1]]), [stop], GenerationSettings(max_new_tokens=9)
        )
        assert (answer.text, answer.is_complete, answer.tokens) == ("fine", is_complete, len(ids))
