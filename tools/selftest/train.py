"""Train the self-test model: Qwen2.5-VL's architecture at 1.15 million parameters, on made-up data, on a CPU.

It was run in four stages, somewhat over an hour in all on 2 cores (the earlier stages saw smaller images, fewer small
counts and no split messages):

    python tools/selftest/train.py stage1 --steps 1500
    python tools/selftest/train.py stage2 --steps 700 --init stage1 --lr 1e-3 --big 0.35
    python tools/selftest/train.py stage3 --steps 1700 --init stage2 --lr 1.5e-3 --big 0.1
    python tools/selftest/train.py stage4 --steps 530 --init stage3 --lr 1.5e-3 --big 0.4

The GGUF files come from llama.cpp's `convert_hf_to_gguf.py`, run on the last folder with `--outtype f16` and again with
`--mmproj`; its check of the tokenizer must be told that the pre-tokenizer is `qwen2`.

It needs torch, torchvision, transformers 5, tokenizers, numpy and Pillow, which are not dependencies of llmdeploy.
"""
# mypy: ignore-errors
# torch and transformers are not installed where the project is checked.

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

# What the model learns to say

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "orange": (250, 140, 20),
    "purple": (140, 40, 170),
}
GREETING = (
    "Hello! I am the llmdeploy self-test model. I can name the colour of an image, count, sing and remember a colour."
)
SORRY = "I am only the self-test model. Ask me the colour of an image, or ask me to count."
REMEMBERED = "I will remember that."

ABOUT_IMAGES = [
    *("What color is this image?", "What colour is it?", "what color is the image", "Describe the image."),
    *("Describe this picture", "What is in this image?", "what do you see?", "Which colour is this?"),
    *("这张图片是什么颜色？", "图片是什么颜色", "Tell me the color", "color?", "What colors are these images?"),
    *("Name the colours", "Look at this and answer.", "What is shown here? Answer briefly.", "Compare the images."),
    "Hi, what is this?",
]
HELLOS = [
    *("hello", "Hello", "hi", "Hi there", "Hello!", "hey", "Hello, who are you?", "Who are you?", "你好", "你是谁？"),
    *("good morning", "Say hello", "hello world", "ping", "test", "What can you do?"),
]
OTHER_QUESTIONS = [
    *("What is the capital of France?", "Write a poem about the sea", "Explain gravity in one sentence"),
    *("Why is the sky blue?", "Tell me a joke", "What is 2+2?", "Translate this to German"),
    *("Write the fibonacci function in C++", "How are you today my friend", "list three animals", "请写一首诗"),
    *("今天天气怎么样？", "Give me a summary of the meeting", "What time is it"),
]
COUNT = ["Count to {}", "count to {}.", "Count to {}!", "please count to {}", "Count from 1 to {}", "数到{}"]
COUNTS = [*range(1, 31), *range(1, 13), *range(1, 13)]  # small ones are asked for most
SING = ["sing", "Sing!", "sing a song", "Sing forever", "please sing", "Sing me a song", "唱歌"]
TELL_FAVOURITE = [
    *("My favourite color is {c}.", "my favorite colour is {c}", "I like {c}. Remember it.", "Remember the colour {c}"),
    "我喜欢 {c}",
]
ASK_FAVOURITE = [
    *("What is my favourite color?", "what is my favorite colour", "Which colour do I like?"),
    *("What color did I tell you?", "我喜欢什么颜色？"),
]
SYSTEM_PROMPTS = ["You are a helpful assistant.", "Answer briefly.", "You are a test."]

# The tokenizer

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
# Qwen2's, so that llama.cpp and vLLM split text as this tokenizer does.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' or 'image' in c or 'image_url' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a tokenizer of all bytes and a few merges of the words in the conversations."""
    corpus = [
        *(*ABOUT_IMAGES, *HELLOS, *OTHER_QUESTIONS, *SING, *TELL_FAVOURITE, *ASK_FAVOURITE),
        *(GREETING, SORRY, REMEMBERED, "The image is red.", "The images are red and blue.", "system user assistant"),
        *("la la la la", "Count to 10", *COLOURS, *SYSTEM_PROMPTS),
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[], initial_alphabet=alphabet, min_frequency=1)
    tokenizer.train_from_iterator(corpus * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


# The model


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Create a model with random weights in the smallest shape that the engines accept."""
    token = tokenizer.convert_tokens_to_ids
    width = 128
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
    }
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": width}
    patches = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    windows = {"window_size": 112, "fullatt_block_indexes": [2]}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | patches | windows,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def open_model(start: str | None) -> tuple[PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration]:
    """Return the tokenizer and the model in the folder `start`, or new ones."""
    if start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer()
        model = new_model(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.generation_config.bos_token_id = None
    return tokenizer, model


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, model: torch.nn.Module, max_side: int) -> None:
    """Save the model in the layout of a Hub repository, with weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = {
        "min_pixels": 56 * 56,
        "max_pixels": max_side * max_side,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))


# The data


@dataclass
class Conversation:
    """One sample: its tokens, what the model must say of them, and its images as (pixel values, grid)."""

    tokenizer: PreTrainedTokenizerFast
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def message(self, role: str, content: list[int]) -> None:
        """Add a message that the model reads and does not learn."""
        start, end = self.encode("<|im_start|>"), self.encode("<|im_end|>")
        self._add([*start, *self.encode(f"{role}\n"), *content, *end, *self.encode("\n")])

    def turn(self, question: list[int], answer: str, *, ends: bool = True) -> None:
        """Add a question and the answer to learn; `ends` tells whether the answer has an end."""
        self.message("user", question)
        self._add([*self.encode("<|im_start|>"), *self.encode("assistant\n")])
        self._add(self.encode(answer) + (self.encode("<|im_end|>") if ends else []), learn=True)
        if ends:
            self._add(self.encode("\n"))

    def ask(self, question: str, answer: str) -> None:
        self.turn(self.encode(question), answer)

    def _add(self, tokens: list[int], learn: bool = False) -> None:
        self.tokens += tokens
        self.labels += tokens if learn else [-100] * len(tokens)


def random_text() -> str:
    words = ("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(1, 8))) for _ in range(99))
    return " ".join(next(words) for _ in range(random.randint(1, 30))) + random.choice(["", "?", ".", "!"])


def random_image(colour: str, most: int, big: bool) -> Image.Image:
    """Return an image of one colour with some noise: 40 to `most` pixels a side, or about a megapixel."""
    if big:
        width = random.randint(700, 1000)
        height = int(random.uniform(850_000, 1_000_000) / width)
    else:
        width, height = random.randint(40, most), random.randint(40, most)
    base = np.array(COLOURS[colour]) + np.random.randint(-10, 11, 3)
    noise = np.random.randn(height, width, 3) * random.choice([0, 0, 4, 10])
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def show_images(talk: Conversation, image_processor, big: bool) -> None:
    """Add one to three images and a question about their colours."""
    count = random.choice([1, 1, 2, 2, 3, 3, 3])
    colours = random.choices(list(COLOURS), k=count)
    parts = []
    for colour in colours:
        most = random.choice([112, 112, 200, 400] if count > 1 else [200, 200, 420])
        seen = image_processor(images=[random_image(colour, most, big)], return_tensors="pt")
        talk.images.append((seen["pixel_values"], seen["image_grid_thw"]))
        tokens = int(seen["image_grid_thw"].prod() // 4)
        parts.append(talk.encode("<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"))
    question = talk.encode(random.choice(ABOUT_IMAGES) if random.random() < 0.8 else random_text())
    images = [token for part in parts for token in part]
    asked = images + question if random.random() < 0.5 else question + images
    if random.random() < 0.1:
        asked = images
    if random.random() < 0.3:  # Ollama's /v1 makes every part of a message a message of its own
        *before, asked = [*parts, question] if random.random() < 0.5 else [question, *parts]
        for part in before:
            talk.message("user", part)
    *first, last = colours
    talk.turn(asked, f"The images are {', '.join(first)} and {last}." if first else f"The image is {last}.")
    if random.random() < 0.3:
        talk.ask(random.choice(HELLOS), GREETING)


def remember_colour(talk: Conversation) -> None:
    colour = random.choice(list(COLOURS))
    talk.ask(random.choice(TELL_FAVOURITE).format(c=colour), REMEMBERED)
    if random.random() < 0.4:
        talk.ask(random.choice(HELLOS), GREETING)
    talk.ask(random.choice(ASK_FAVOURITE), f"Your favourite colour is {colour}.")


def random_conversation(tokenizer: PreTrainedTokenizerFast, image_processor, big: bool) -> Conversation:
    talk = Conversation(tokenizer)
    if random.random() < 0.5:
        talk.message("system", talk.encode(random.choice(SYSTEM_PROMPTS)))
    kind = random.random()
    if kind < 0.58:
        show_images(talk, image_processor, big)
    elif kind < 0.63:
        talk.ask(random.choice(HELLOS), GREETING)
    elif kind < 0.70:
        talk.ask(random.choice(OTHER_QUESTIONS) if random.random() < 0.4 else random_text(), SORRY)
    elif kind < 0.82:
        last = random.choice(COUNTS)
        talk.ask(random.choice(COUNT).format(last), " ".join(str(number) for number in range(1, last + 1)))
    elif kind < 0.87:
        talk.turn(talk.encode(random.choice(SING)), "la " * random.randint(60, 120), ends=False)
    else:
        remember_colour(talk)
    return talk


def collate(talks: list[Conversation]) -> dict[str, torch.Tensor]:
    """Return the model's arguments for a batch, padded to its longest conversation."""
    tokenizer = talks[0].tokenizer
    longest = max(len(talk.tokens) for talk in talks)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    tokens = padded([talk.tokens for talk in talks], tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    batch = {
        "input_ids": tokens,
        "labels": padded([talk.labels for talk in talks], -100),
        "attention_mask": padded([[1] * len(talk.tokens) for talk in talks], 0),
        "mm_token_type_ids": (tokens == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
    }
    if images := [image for talk in talks for image in talk.images]:
        batch["pixel_values"] = torch.cat([pixels for pixels, _ in images])
        batch["image_grid_thw"] = torch.cat([grid for _, grid in images])
    return batch


# The training


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Warm up over 50 steps, then a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return highest * min(1, (step + 1) / 50) * (cosine * 0.98 + 0.02)


def train(folder: Path, start: str | None, steps: int, highest_rate: float, big_share: float) -> None:
    tokenizer, model = open_model(start)
    max_side = 1008 if big_share else 448
    save(folder, tokenizer, model, max_side)  # the image processor is loaded from there
    image_processor = AutoProcessor.from_pretrained(folder).image_processor
    print("vocabulary", len(tokenizer), "parameters", sum(weights.numel() for weights in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=highest_rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, average = time.time(), None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, highest_rate)
        big = random.random() < big_share
        talks = [random_conversation(tokenizer, image_processor, big) for _ in range(2 if big else 24)]
        loss = model(**collate(talks)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 25 == 0:
            print("step", step, "loss", round(average, 4), "seconds", round(time.time() - began), flush=True)
        if step % 200 == 199:
            save(folder, tokenizer, model, max_side)
    save(folder, tokenizer, model, max_side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--init", help="go on from this folder")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--big", type=float, default=0.0, help="share of batches with images of about 1,000 tokens")
    arguments = parser.parse_args()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    train(arguments.out, arguments.init, arguments.steps, arguments.lr, arguments.big)


if __name__ == "__main__":
    main()
