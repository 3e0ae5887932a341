"""Writes the starter dataset: short requests in plain words, answered by one line of JSON that a program could run.

Run `python resources/starter/make_dataset.py` to write `train.jsonl` and `held_out.jsonl` again; the same seed gives
the same files. No request of the held-out part occurs in training. Written by this project, CC0-1.0.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

SEED = 20_230_523
TRAIN_ROWS = 360
HELD_OUT_ROWS = 40

TASKS = [
    "water the plants", "call my sister", "take out the bins", "feed the cat", "pay the rent", "book the dentist",
    "send the report", "buy stamps", "walk the dog", "return the library books", "charge the drill", "bake the bread",
    "clean the oven", "renew my passport", "pick up the parcel", "back up my laptop", "iron the shirts", "check the tyres",
]  # fmt: skip
HOURS = {
    "at six in the morning": "06:00", "at seven in the morning": "07:00", "at half past eight": "08:30", "at nine": "09:00",
    "at a quarter to ten": "09:45", "at noon": "12:00", "at one in the afternoon": "13:00", "at 3 pm": "15:00",
    "at half past four in the afternoon": "16:30", "at 6 pm": "18:00", "at seven in the evening": "19:00",
    "at 9 pm": "21:00", "at midnight": "00:00",
}  # fmt: skip
ROOMS = [
    "kitchen",
    "hall",
    "bedroom",
    "garage",
    "garden",
    "study",
    "bathroom",
    "attic",
    "cellar",
    "living room",
]
FOODS = [
    "milk",
    "rice",
    "apples",
    "coffee",
    "butter",
    "lentils",
    "pasta",
    "tea",
    "onions",
    "flour",
    "olive oil",
    "eggs",
]
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10, "twelve": 12}
MINUTES = {
    "three minutes": 3, "five minutes": 5, "eight minutes": 8, "ten minutes": 10, "a quarter of an hour": 15,
    "twenty minutes": 20, "half an hour": 30, "forty minutes": 40, "an hour": 60, "an hour and a half": 90,
}  # fmt: skip
DISHES = ["the eggs", "the rice", "the pizza", "the tea", "the laundry", "my nap", "the bread", "the soup"]
PEOPLE = ["Ada", "Bilal", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena"]
MESSAGES = [
    "I am running late", "dinner is ready", "the train was cancelled", "happy birthday", "the keys are under the mat",
    "I found your umbrella", "the meeting moved to Friday", "thank you for the book",
]  # fmt: skip
CITIES = [
    "Oslo",
    "Lagos",
    "Lima",
    "Turin",
    "Hanoi",
    "Porto",
    "Quito",
    "Dakar",
    "Perth",
    "Riga",
    "Izmir",
    "Kyoto",
]
DAYS = ["today", "tomorrow", "on Monday", "on Tuesday", "on Friday", "on Saturday", "on Sunday"]

Pair = tuple[str, dict[str, object]]


def reminders() -> Iterator[Pair]:
    for task in TASKS:
        for words, clock in HOURS.items():
            answer: dict[str, object] = {"do": "remind", "what": task, "when": clock}
            yield f"Remind me to {task} {words}.", answer
            yield f"I must not forget to {task} {words}.", answer


def lights() -> Iterator[Pair]:
    for room in ROOMS:
        for state in ("on", "off"):
            answer: dict[str, object] = {"do": "light", "where": room, "state": state}
            yield f"Turn the {room} light {state}.", answer
            yield f"Could you switch {state} the light in the {room}?", answer
        yield f"It is too dark in the {room}.", {"do": "light", "where": room, "state": "on"}
        yield f"Nobody needs light in the {room} now.", {"do": "light", "where": room, "state": "off"}


def shopping() -> Iterator[Pair]:
    for food in FOODS:
        for word, number in NUMBERS.items():
            answer: dict[str, object] = {"do": "buy", "what": food, "count": number}
            yield f"Put {word} packs of {food} on the list.", answer
            yield f"We need {food}, {word} of them.", answer


def timers() -> Iterator[Pair]:
    for dish in DISHES:
        for words, minutes in MINUTES.items():
            answer: dict[str, object] = {"do": "timer", "for": dish.removeprefix("the "), "minutes": minutes}
            yield f"Set a timer of {words} for {dish}.", answer
            yield f"Wake me up about {dish} in {words}.", answer


def messages() -> Iterator[Pair]:
    for person in PEOPLE:
        for text in MESSAGES:
            answer: dict[str, object] = {"do": "message", "to": person, "text": text}
            yield f"Tell {person} that {text}." if " " in text else f"Tell {person}: {text}.", answer
            yield f"Write to {person}: {text}.", answer


def weather() -> Iterator[Pair]:
    for city in CITIES:
        for day in DAYS:
            answer: dict[str, object] = {
                "do": "weather",
                "where": city,
                "when": day.removeprefix("on ").lower(),
            }
            yield f"Will it rain in {city} {day}?", answer
            yield f"What is the weather in {city} {day}?", answer


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training rows, held-out rows) in the Alpaca format; no request is in both."""
    generator = random.Random(SEED)
    kinds = [list(make()) for make in (reminders, lights, shopping, timers, messages, weather)]
    for pairs in kinds:
        generator.shuffle(pairs)
    chosen: list[Pair] = []
    while len(chosen) < TRAIN_ROWS + HELD_OUT_ROWS:
        pairs = kinds[len(chosen) % len(kinds)]
        kinds[len(chosen) % len(kinds)] = pairs or max(kinds, key=len)
        chosen.append(kinds[len(chosen) % len(kinds)].pop())
    made = [{"instruction": request, "input": "", "output": json.dumps(answer)} for request, answer in chosen]
    held_out, train = made[:HELD_OUT_ROWS], made[HELD_OUT_ROWS:]
    generator.shuffle(train)
    return train, held_out


def main() -> None:
    folder = Path(__file__).parent
    for name, part in zip(("train.jsonl", "held_out.jsonl"), rows(), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
