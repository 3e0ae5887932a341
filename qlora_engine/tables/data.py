"""The `[data]` table: what is trained on, and how rows are read."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.knobs import knob


@dataclass(frozen=True)
class DataSettings:
    path: str = knob(
        "starter",
        label="Dataset",
        help="`starter`, a file (.json .jsonl .csv .tsv .parquet .txt), a folder of them, or a Hugging Face dataset id.",
        resume="rows",
    )
    split: str = knob(
        "train",
        label="Split",
        help="Split of a hub dataset.",
        is_expert=True,
        resume="rows",
    )
    format: str = knob(
        "auto",
        label="Format",
        help="How rows are read. Left to itself, the program looks at the columns and says what it found.",
        choices={
            "auto": "Automatic",
            "alpaca": "Alpaca (instruction, input, output)",
            "sharegpt": "ShareGPT (conversations: from, value)",
            "messages": "Chat messages (role, content)",
            "tool_questions": "Questions answered by calls (query, tools, answers)",
            "prompt_completion": "Prompt and completion",
            "oasst": "OpenAssistant (text with ### Human / ### Assistant, or message trees)",
            "preference": "Preference pairs (chosen, rejected)",
            "transcript": "Conversations written out as one text (Human:, ChatML, [INST])",
            "text": "Plain text",
        },
        resume="rows",
    )
    columns: dict[str, str] = knob(
        label="Columns",
        help='Maps a field of the format to a column of the data: `instruction = "question"`.',
        default_factory=dict,
        resume="rows",
    )
    held_out_path: str | None = knob(
        None,
        label="Held-out data",
        help="A file whose rows are never trained on. Empty: a share of the dataset.",
        resume="rows",
    )
    held_out_fraction: float = knob(
        0.05,
        label="Held-out share",
        help="Share of the rows kept aside to measure the model on.",
        lo=0,
        hi=0.5,
        resume="rows",
    )
    max_rows: int | None = knob(
        None,
        label="Rows at most",
        help="Use only the first rows. Empty: all.",
        lo=1,
        is_expert=True,
        resume="rows",
    )
    seq_len: int | None = knob(
        None,
        label="Sequence length",
        help="Longest row in tokens; longer rows are cut, and counted. Empty: the data's own 99th percentile.",
        unit="tokens",
        lo=8,
        hi=1_048_576,
        resume="rows",
    )
    train_on: str = knob(
        "answers",
        label="Train on",
        help="Answers only (usual), or every token of the text.",
        choices={"answers": "Answers only", "everything": "Everything"},
        resume="rows",
    )
    chat_template: str = knob(
        "auto",
        label="Chat template",
        help="The model's own; a named one (chatml, llama3, alpaca ...) for a model without; or a Jinja file.",
        is_expert=True,
        resume="rows",
    )
    reasoning: str = knob(
        "train",
        label="Reasoning",
        help="What becomes of the thoughts before an answer. The same in training, chat and held-out scores.",
        choices={
            "train": "Trained: the model learns to think first",
            "context": "Kept as context: seen, not learned",
            "remove": "Removed: answers alone",
        },
        resume="rows",
    )
    empty_answers: str = knob(
        "context",
        label="Empty answers",
        help="An answer without a word among others: only read, or its end trained, so that silence is learned.",
        choices={"context": "Only read", "train": "Train their end"},
        is_expert=True,
        resume="rows",
    )
    preference: str = knob(
        "ask",
        label="Preference pairs",
        help="Rows with a wanted and an unwanted answer, or an answer marked as unwanted, are not trained before it is said what of them.",
        choices={"ask": "Not trained", "chosen": "Train the wanted answer, leave the other out"},
        is_expert=True,
        resume="rows",
    )
    ignore: tuple[str, ...] = knob(
        (),
        label="Ignore",
        help="What may be left out of rows although it changes their meaning: images, calls, weights, rejected, or a key.",
        is_expert=True,
        resume="rows",
    )
    system_prompt: str | None = knob(
        None,
        label="System prompt",
        help="Put before every conversation that has none.",
        is_expert=True,
        resume="rows",
    )
    packing: bool = knob(
        False,
        label="Pack short rows",
        help="Puts several rows into one sequence; each sees only itself. Faster on short rows.",
        resume="rows",
    )
    more: dict[str, float] = knob(
        label="More sources",
        help='Datasets mixed in, each with how often its rows are seen per epoch: `"chat.jsonl" = 1.0`; 0.5 is a fixed half.',
        default_factory=dict,
        is_expert=True,
        resume="rows",
    )
    encoding: str = knob(
        "auto",
        label="Encoding",
        help="Of text files. Auto finds UTF-8, UTF-16 and Western ones, and refuses what it cannot tell; else its name.",
        is_expert=True,
        resume="rows",
    )
    leave_out: str = knob(
        "",
        label="Rows to leave out",
        help="Numbers of rows, as they are shown everywhere, that are neither trained nor held out: `3, 8-12`.",
        is_expert=True,
        resume="rows",
    )
    bad_rows: float = knob(
        0.5,
        label="Bad rows at most",
        help="Share of rows that may be left out as unreadable before the run refuses to start; each is named.",
        lo=0,
        hi=1,
        is_expert=True,
        resume="safe",
    )
    overlap: int = knob(
        0,
        label="Overlap of text",
        help="Tokens that a row of a long plain text repeats from the end of the row before.",
        unit="tokens",
        lo=0,
        hi=65_536,
        is_expert=True,
        resume="rows",
    )
    tree_paths: str = knob(
        "best",
        label="Message trees",
        help="Of an OpenAssistant tree: the path along the answers ranked first, or every path.",
        choices={"best": "Best path", "all": "All paths"},
        is_expert=True,
        resume="rows",
    )
