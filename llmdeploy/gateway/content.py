"""The checks of what messages hold: text, images, sounds, and no address that an engine would fetch. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import UNSET

from llmdeploy.gateway.constraints import check_arguments
from llmdeploy.gateway.errors import Refused, cannot, invalid
from llmdeploy.gateway.failure_rules import CONTEXT, SEES_NOT, SHORTEN
from llmdeploy.gateway.fields.content import ImageUrl, Media, Message, Part
from llmdeploy.gateway.image_size import size
from llmdeploy.gateway.target import Target

IMAGE = re.compile(r"data:image/(png|jpe?g|webp|gif|bmp);base64,(?=.)")
DATA_URL = "send the image itself, as a data: URL: `data:image/png;base64,...`"
MOST_IMAGES = 128
"""Images, sounds and videos of one request."""
MOST_PIXELS = 40_000_000
"""Pixels of one image. An engine needs about eight bytes for each."""
MOST_PIXELS_TOGETHER = 100_000_000
"""Pixels of all images of one request."""
LONGEST_SIDE = 16_384
"""Pixels."""
SHRINK = "shrink it to 2048 pixels a side: models see no more"

LONGEST_TOKEN = 128
"""Characters that one token may stand for: a run of spaces in some vocabularies."""
SHORT_TEXT = 12 * 2**20
"""Characters up to which an engine is left to count the tokens."""

PART_NEEDS = {"text": "text", "image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
"""The capability that a model needs for each type of content."""


@dataclass
class Pictures:
    """The images of one request that were checked so far."""

    number: int = 0
    pixels: int = 0

    def count(self, place: str) -> None:
        """Count an image, a sound or a video. Raises Refused."""
        self.number += 1
        if self.number > MOST_IMAGES:
            raise invalid(place, f"is one of more than {MOST_IMAGES} images", "too_many_images", "send fewer images")

    def check_url(self, place: str, url: str) -> None:
        """Check the address of an image. Raises Refused."""
        found = IMAGE.match(url)
        if found is None:
            raise no_image(place, url)
        self.check(place, url[found.end() :])

    def check(self, place: str, base64: str) -> None:
        """Check the bytes of an image. Raises Refused."""
        self.count(place)
        found = size(base64)
        if found is None:
            message = "cannot be read: it is not a PNG, JPEG, WebP, GIF or BMP image in Base64"
            raise invalid(place, message, "invalid_image", DATA_URL)
        width, height = found
        self.pixels += width * height
        if width * height > MOST_PIXELS or max(found) > LONGEST_SIDE:
            raise invalid(place, f"is too large: {width} x {height} pixels", "invalid_image", SHRINK)
        if self.pixels > MOST_PIXELS_TOGETHER:
            message = f"and the images before it have more than {MOST_PIXELS_TOGETHER:,} pixels"
            raise invalid(place, message, "invalid_image", SHRINK)


def check_messages(name: str, messages: list[Message], target: Target) -> None:
    """Check the messages of a chat. Raises Refused."""
    pictures: Pictures | None = None
    characters = 0
    for at, message in enumerate(messages):
        content = message.content
        if message.tool_calls is not None:
            for number, call in enumerate(message.tool_calls):
                check_arguments(f"{name}[{at}].tool_calls[{number}].function.arguments", call.function.arguments)
        if isinstance(content, str):
            characters += len(content)
        elif isinstance(content, list):
            pictures = pictures or Pictures()
            for number, part in enumerate(content):
                characters += len(part.text) if isinstance(part.text, str) else 0
                _check_part(f"{name}[{at}].content[{number}]", part, target, pictures)
        elif message.role != "assistant":
            raise invalid(f"{name}[{at}].content", "is missing")
    if characters > SHORT_TEXT:
        check_length(name, characters, target)


def check_length(name: str, characters: int, target: Target) -> None:
    """Refuse a text that cannot fit: an engine takes minutes and gigabytes to find that out. Raises Refused."""
    if target.context is not None and characters > max(target.context * LONGEST_TOKEN, SHORT_TEXT):
        message = (
            f"the request has {characters:,} characters, and the context of `{target.model}` {target.context} tokens"
        )
        raise Refused(400, message, code=CONTEXT, param=name, hint=SHORTEN)


def _check_part(place: str, part: Part, target: Target, pictures: Pictures) -> None:
    needs = PART_NEEDS.get(part.type)
    if needs is None:
        raise invalid(f"{place}.type", f"must be `text` or `image_url`, not `{part.type[:80]}`")
    if needs not in target.capabilities and needs == "image":
        raise cannot(place, target, "sees no images", "image_not_supported", SEES_NOT)
    if needs not in target.capabilities and needs != "text":
        raise cannot(place, target, f"does not accept {needs}", f"{needs}_not_supported", "send text or images")
    if needs == "text" and part.text is UNSET:
        raise invalid(f"{place}.text", "is missing")
    if needs == "image" and part.image_url is UNSET:
        raise invalid(f"{place}.image_url", "is missing")
    # An engine may look at these whatever the type is.
    if isinstance(part.image_url, ImageUrl):
        pictures.check_url(f"{place}.image_url.url", part.image_url.url)
    for name in ("input_audio", "audio_url", "video_url"):
        media = getattr(part, name)
        if isinstance(media, Media):
            pictures.count(place)
            check_data_url(f"{place}.{name}.url", media.url)


def check_data_url(place: str, url: str | None) -> None:
    """Refuse an address that an engine would fetch. Raises Refused."""
    if url and not url.startswith("data:"):
        raise no_image(place, url)


def no_image(place: str, url: str) -> Refused:
    """Return the refusal of a URL. An engine would fetch it from inside this machine's network."""
    if url.startswith("data:"):
        message = "must hold a PNG, JPEG, WebP, GIF or BMP image in Base64"
    else:
        message = "must be a data: URL; images are never fetched"
    return invalid(place, message, "invalid_image", DATA_URL)
