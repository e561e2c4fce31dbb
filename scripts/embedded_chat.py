"""Plain chat without a video: questions that training keeps as they were, and a dozen others to see whether it did."""

from __future__ import annotations

from typing import Any

import torch

from vstream.models.embedded.adapter import EmbeddedAdapter

WRITTEN = (
    "What is the capital of Italy?", "Who wrote Hamlet?", "What is 7 plus 5?", "Name three colours.",
    "What is photosynthesis?",
    "How do I boil an egg?", "Write a sentence about the sea.", "What is the opposite of hot?",
    "Why is the sky blue?",
    "Tell me a short joke.", "What language is spoken in Brazil?", "Give me a synonym for happy.",
    "What does a doctor do?",
    "How many days are in a week?", "What is the largest planet?", "Explain gravity to a child.",
    "Name two rivers in Europe.",
    "What is a noun?", "Translate 'good morning' into French.", "Who was Albert Einstein?", "What do bees make?",
    "Is the earth round?", "How can I sleep better?", "What is the boiling point of water?",
    "Write a title for a story about a dragon.",
    "What is a computer?", "Name a fruit that is yellow.", "What is the square root of 16?",
    "Why do birds fly south?",
    "What should I cook for dinner?", "What is the meaning of 'brave'?", "How do plants grow?",
    "Which animal is the fastest?",
    "What is democracy?", "Give me some advice for an exam.", "What is snow?", "Who painted the Mona Lisa?",
    "What is an atom?",
    "Say hello in Spanish.", "How long is a marathon?",
)  # fmt: skip
PATTERNS = {
    "What is the capital of {}?": "Spain/Germany/Japan/Egypt/Canada/India/Greece/Norway/Peru/Kenya",
    "What is {}?": "electricity/rain/a poem/music/a volcano/history/oxygen/bread/the sun/a river",
    "What is {}": "1 plus 6?/8 minus 3?/4 times 5?/9 plus 9?",
    "Who was {}?": "Napoleon/Mozart/Cleopatra/Galileo/Gandhi/Charles Darwin/Columbus/Aristotle/Marie Curie",
    "What is the opposite of {}?": "cold/fast/happy/dark/old/heavy/rich/early",
    "What does a {} do?": "farmer/pilot/baker/lawyer/nurse/judge/painter/carpenter",
    "Write a sentence about {}.": "winter/cats/football/trees/the city/friendship/rain/breakfast",
    "How do I make {}?": "coffee/a cake/soup/a kite/bread/a salad",
    "Name three {}.": "fruits/sports/cities/planets/metals/flowers/instruments",
    "Why do {}?": "people dream/dogs bark/stars shine/cats sleep so much/ships float/we need sleep",
    "How many {}?": "hours are in a day/legs does a spider have/continents are there/minutes are in an hour",
    "What is the largest {}?": "animal/country/desert/island",
    "What is {} made of?": "glass/paper/air/steel/chocolate",
}
"""More prompts: wordings, and what may stand in them."""
PROMPTS = (*WRITTEN, *(text.format(word) for text, words in PATTERNS.items() for word in words.split("/")))
ASKED = (
    "What is the capital of France?", "What is 2 plus 3?", "Name three animals.", "Why do leaves fall in autumn?",
    "What is the opposite of big?", "How many months are in a year?", "Who was Isaac Newton?",
    "What is water made of?",
    "Write a sentence about the moon.", "What does a teacher do?", "How do I make tea?", "What is the largest ocean?",
)  # fmt: skip
"""Never trained on."""


def prompt_ids(adapter: EmbeddedAdapter, prompt: str) -> list[int]:
    """The language model's own chat template around a prompt (the GGUF file does not carry it)."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids: list[int] = adapter.tokens.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def say(adapter: EmbeddedAdapter, prompt: str, most: int) -> list[int]:
    """Token ids of the greedy answer, the end of the turn included if it comes."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=adapter.config)
    new, ids = prompt_ids(adapter, prompt), []
    with torch.inference_mode():
        while len(ids) < most and not (ids and ids[-1] in adapter.eos_ids):
            out: Any = adapter.decoder(inputs_embeds=adapter.embed(torch.tensor([new])), past_key_values=cache)
            ids.append(int(adapter.head(out.last_hidden_state[0, -1]).argmax()))
            new = ids[-1:]
    return ids
