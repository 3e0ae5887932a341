"""What a run does with every row: which text is trained, what becomes of reasoning and of empty answers. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Message


@dataclass(frozen=True)
class Policy:
    """`train_on`: answers or everything; `reasoning`: train, context or remove; `empty_answers`: context or train."""

    train_on: str = "answers"
    reasoning: str = "train"
    empty_answers: str = "context"

    @classmethod
    def of(cls, settings: DataSettings) -> Policy:
        return cls(settings.train_on, settings.reasoning, settings.empty_answers)

    def kept(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages without what this policy removes."""
        if self.reasoning != "remove":
            return messages
        return tuple(replace(m, reasoning=None) if m.reasoning else m for m in messages)

    def trains(self, message: Message) -> bool:
        """Whether an answer is learned, or only read."""
        if not message.is_answer or message.is_trained is False:
            return False
        return not message.is_empty or self.empty_answers == "train"
