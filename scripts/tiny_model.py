"""What `tiny` is made of: vocabulary, tokenizer, configuration. `train_tiny.py` fills in the weights.

A stock `LlavaOnevisionForConditionalGeneration` (SigLIP tower, Qwen3 language model) with words for tokens: `[12:07]`
is a minute and a second; the rest are the words of the synthetic world's questions and answers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlavaOnevisionConfig, PreTrainedTokenizerFast, Qwen3Config, SiglipVisionConfig

from vstream.app.lab.exam import CHOICES, NOT_SEEN, NOTHING, TEMPLATES
from vstream.app.lab.world import COLOURS, DIRECTIONS, KINDS, PLACES, TEXTURES

SIDE, PATCH = 48, 12  # pixels: 4 x 4 patches, pooled to 2 x 2 tokens, one for each quarter of a frame
NUM_PLACES = 4
MINUTES = 24 * 60
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<q>", "<a>", "<image>", "<video>")
PAD, UNK, BOS, EOS, ASK, ANSWER, IMAGE, VIDEO = SPECIAL
NUMBERS = ("none", "one", "two", "three")
CHAT = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>{% elif part['type'] == 'image' %}<image>"
    "{% else %}<q>{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
PIECES = r"\d+:\d\d|[A-Za-z]+|\d+"


def words() -> list[str]:
    """Every word of a question or an answer."""
    wordings = " ".join(re.sub(r"\{.*?\}", " ", text) for texts in TEMPLATES.values() for text in texts)
    answers = (*COLOURS, *TEXTURES, *KINDS, *PLACES, *DIRECTIONS, *NUMBERS, *CHOICES, NOT_SEEN, NOTHING, "yes", "no")
    found = re.findall(r"[A-Za-z]+|\d", f"{wordings} {' '.join(answers)} choose an")
    return list(dict.fromkeys(found))


def minute_token(minute: int) -> str:
    """The first token of a time."""
    return f"{minute}:"


def second_token(second: int) -> str:
    """The second one."""
    return f"##{second:02}"


def vocabulary() -> list[str]:
    """All tokens, in the order of their ids; words that may begin a sentence come capitalised too."""
    plain = words()
    capital = [word.capitalize() for word in plain if len(word) > 1 and word.islower()]
    times = [minute_token(m) for m in range(MINUTES)] + [second_token(s) for s in range(60)]
    return [*SPECIAL, *plain, *(word for word in capital if word not in plain), *times]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words and times; what it does not know is `<unk>`."""
    ids = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, bos_token=BOS, eos_token=EOS,
        additional_special_tokens=[ASK, ANSWER, IMAGE, VIDEO], chat_template=CHAT, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return made


def make_config(*, layers: int = 9, hidden: int = 128, vision_layers: int = 4) -> LlavaOnevisionConfig:
    """The stock configuration, small."""
    ids = {token: number for number, token in enumerate(vocabulary())}
    text = Qwen3Config(
        vocab_size=len(ids), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=4096, attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8}, tie_word_embeddings=True,
        bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD],
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=vision_layers, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    return LlavaOnevisionConfig(
        text_config=text, vision_config=vision, image_token_index=ids[IMAGE], video_token_index=ids[VIDEO],
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
        image_grid_pinpoints=[[SIDE, SIDE]], multimodal_projector_bias=True,
    )  # fmt: skip


def preprocessor() -> dict[str, Any]:
    """The processor's configuration: resize to a square, -1 to 1."""
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor",
        "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_convert_rgb": True, "do_pad": False, "image_grid_pinpoints": [[SIDE, SIDE]],
    }  # fmt: skip


def save_around(folder: Path) -> None:
    """Writes all of a checkpoint but its weights and configuration."""
    make_tokenizer().save_pretrained(folder)
    image = preprocessor()
    video = {**image, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    del video["image_processor_type"]
    rest = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": NUM_PLACES,
            "vision_feature_select_strategy": "full", "video_token": VIDEO, "image_token": IMAGE}  # fmt: skip
    names = ("preprocessor_config", "video_preprocessor_config", "processor_config")
    for name, content in zip(names, (image, video, rest), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
