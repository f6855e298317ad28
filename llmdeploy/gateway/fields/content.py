"""The fields of messages: their parts, their images, and the calls of tools."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from llmdeploy.gateway.fields.bounds import MOST_PARTS, MOST_TOOLS, Fields, Identifier, Name


class ImageUrl(Fields):
    url: str
    detail: Name | None = None


class Media(Fields):
    """A sound or a video: its bytes, or a data: URL."""

    data: str | None = None
    format: Name | None = None
    url: str | None = None


class Part(Fields):
    type: str
    text: str | UnsetType = UNSET
    image_url: ImageUrl | UnsetType = UNSET
    input_audio: Media | UnsetType = UNSET
    audio_url: Media | UnsetType = UNSET
    video_url: Media | UnsetType = UNSET


class FunctionCall(Fields):
    name: str
    arguments: str


class ToolCall(Fields):
    function: FunctionCall
    id: Identifier | None = None
    type: Name | UnsetType = UNSET
    index: int | None = None


class Message(Fields):
    role: str
    content: str | Annotated[list[Part], Meta(min_length=1, max_length=MOST_PARTS)] | UnsetType | None = UNSET
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Identifier | None = None
    tool_name: Name | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    prefix: bool | None = None
