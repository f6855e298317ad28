"""The checks of the routes of other APIs, `/v1/messages` and `/v1/responses`. Pure functions.

The served engine answers them as it can, and so they are checked only for what would harm it or this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmdeploy.gateway.constraints import (
    MOST_ARGUMENT_BYTES,
    MOST_TEMPLATE_BYTES,
    check_arguments,
    check_schemas,
    check_structured,
    check_value,
    given,
)
from llmdeploy.gateway.content import Pictures, check_data_url, check_length, no_image
from llmdeploy.gateway.fields.messages import Block, Messages, ResultPart
from llmdeploy.gateway.fields.responses import Item, ItemPart, Responses
from llmdeploy.gateway.target import Target


def check_messages(asked: Messages, target: Target) -> None:
    """Check a request of Anthropic's API. Raises Refused."""
    pictures = Pictures()
    characters = _check_blocks("system", asked.system, pictures)
    for at, turn in enumerate(asked.messages or ()):
        characters += _check_blocks(f"messages[{at}].content", turn.content, pictures)
    check_length("messages", characters, target)
    check_value("chat_template_kwargs", asked.chat_template_kwargs, MOST_TEMPLATE_BYTES)
    schemas = [(f"tools[{at}].input_schema", tool.input_schema) for at, tool in enumerate(asked.tools or ())]
    if asked.output_config is not None and asked.output_config.format is not None:
        schemas.append(("output_config.format.schema", asked.output_config.format.schema))
    if asked.output_format is not None:
        schemas.append(("output_format.schema", asked.output_format.schema))
    check_schemas([*given(schemas)])


def _check_blocks(place: str, blocks: Sequence[Block | ResultPart] | str | None, pictures: Pictures) -> int:
    """Check the content of a turn, and return its length in characters. Raises Refused."""
    if blocks is None or isinstance(blocks, str):
        return len(blocks or "")
    characters = 0
    for at, block in enumerate(blocks):
        here = f"{place}[{at}]"
        characters += len(block.text or "")
        source = block.source
        if source is not None:
            if source.url is not None or source.type == "url":
                raise no_image(f"{here}.source", source.url or "")
            if block.type == "image":
                pictures.check(f"{here}.source.data", source.data or "")
        if block.image_url is not None:
            url = block.image_url if isinstance(block.image_url, str) else block.image_url.url
            pictures.check_url(f"{here}.image_url", url)
        if isinstance(block, Block):
            characters += _check_blocks(f"{here}.content", block.content, pictures)
            check_value(f"{here}.input", block.input, MOST_ARGUMENT_BYTES)
    return characters


def check_responses(asked: Responses, target: Target) -> None:
    """Check a request of OpenAI's API for responses. Raises Refused."""
    pictures = Pictures()
    characters = len(asked.instructions or "")
    if isinstance(asked.input, str):
        characters += len(asked.input)
    elif isinstance(asked.input, list):
        for at, item in enumerate(asked.input):
            characters += _check_item(f"input[{at}]", item, pictures)
    check_length("input", characters, target)
    check_value("chat_template_kwargs", asked.chat_template_kwargs, MOST_TEMPLATE_BYTES)
    schemas = [(f"tools[{at}].parameters", tool.parameters) for at, tool in enumerate(asked.tools or ())]
    if asked.text is not None and asked.text.format is not None:
        schemas.append(("text.format.schema", asked.text.format.schema))
    check_schemas([*given(schemas), *check_structured(asked.structured_outputs)])


def _check_item(place: str, item: Item, pictures: Pictures) -> int:
    """Check an item, and return its length in characters. Raises Refused."""
    characters = len(item.arguments or "") + len(item.input or "")
    for name in ("content", "output", "summary"):
        parts: Any = getattr(item, name)
        if isinstance(parts, list):
            for at, part in enumerate(parts):
                characters += len(part.text or "")
                _check_part(f"{place}.{name}[{at}]", part, pictures)
        elif isinstance(parts, str):
            characters += len(parts)
    check_arguments(f"{place}.arguments", item.arguments or "")
    return characters


def _check_part(place: str, part: ItemPart, pictures: Pictures) -> None:
    if part.image_url is not None:
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        pictures.check_url(f"{place}.image_url", url)
    if part.file_url is not None:
        raise no_image(f"{place}.file_url", part.file_url)
    for name in ("audio_url", "video_url", "input_audio"):
        media = getattr(part, name)
        if media is not None:
            pictures.count(place)
            check_data_url(f"{place}.{name}", media if isinstance(media, str) else media.url)
    check_value(f"{place}.annotations", part.annotations, MOST_TEMPLATE_BYTES)
    check_value(f"{place}.logprobs", part.logprobs, MOST_TEMPLATE_BYTES)
