"""An image from a path, an address or standard input, made into what a chat request carries.

A PNG or JPEG that every engine reads alike is passed on as the very bytes. Anything else is decoded here and written
anew: upright, on white instead of transparency, not larger than `MAX_SIDE`.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from llmdeploy import image_sources
from llmdeploy.errors import ImageInvalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# The models shrink what is larger: more pixels cost time on the way and prompt tokens, and show them nothing new.
MAX_SIDE = 2048
# A photograph of 108 megapixels, the largest that telephones make, passes; it takes 324 MB once decoded.
MAX_PIXELS = 120_000_000

# Pillow has more readers, some of which start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read"


@dataclass(frozen=True)
class Image:
    """A checked image; `width` and `height` in pixels, `source` as the user named it."""

    data: bytes
    media_type: str
    width: int
    height: int
    source: str

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def load(source: str, stdin: BinaryIO | None = None, *, timeout: float = 30.0) -> Image:
    """The image that `source` names: `-` for standard input, an http(s), data or file URL, or a path.

    `timeout` is in seconds and bounds a whole download. Raises ImageInvalid.
    """
    return decode(*image_sources.read(source, stdin, timeout))


def decode(data: bytes, source: str) -> Image:
    """The image in `data`, checked in full. Raises ImageInvalid."""
    if not data:
        raise ImageInvalid(f"`{source}` is empty", "was it written or downloaded in full?")
    # Pillow warns of odd but readable files; none of it helps the user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, source)
        except ImageInvalid:
            raise
        except Exception as error:  # a decoder meets hostile bytes with whatever exception it happens to run into
            raise ImageInvalid(*_decode_failure(data, source, error)) from error


def _decode(data: bytes, source: str) -> Image:
    from PIL import Image as pillow

    checked = pillow.open(io.BytesIO(data), formats=FORMATS)
    width, height = checked.size
    if width * height > MAX_PIXELS:
        raise ImageInvalid(*_too_many_pixels(source, f"{width} x {height} pixels"))
    checked.verify()  # the checksums; it uses the object up
    picture: Picture = pillow.open(io.BytesIO(data), formats=FORMATS)
    picture.load()
    is_jpeg = checked.format in ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind it, from many telephones
    if (is_jpeg or checked.format == "PNG") and _is_plain(picture):
        return Image(data, "image/jpeg" if is_jpeg else "image/png", width, height, source)
    picture = _plain(picture)
    file = io.BytesIO()
    # A photograph stays a JPEG: as a PNG it would be five times as large.
    picture.save(file, "JPEG", quality=95) if is_jpeg else picture.save(file, "PNG")
    return Image(file.getvalue(), "image/jpeg" if is_jpeg else "image/png", *picture.size, source)


def _is_plain(picture: Picture) -> bool:
    """Whether every engine's decoder sees the same picture."""
    small = max(picture.size) <= MAX_SIDE
    return (
        small
        and picture.mode in ("1", "L", "P", "RGB", "RGBA", "LA")
        and not _turned(picture)
        and not _transparent(picture)
    )


def _turned(picture: Picture) -> bool:
    from PIL.ExifTags import Base

    try:
        return picture.getexif().get(Base.Orientation, 1) in range(2, 9)
    except Exception:  # broken EXIF data says nothing about the pixels
        return False


def _transparent(picture: Picture) -> bool:
    return picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _plain(picture: Picture) -> Picture:
    """Upright, small enough, eight bits a colour, on white, and without anything but the pixels."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if _turned(picture):
        picture = ImageOps.exif_transpose(picture)
    picture = _eight_bits(picture)
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), pillow.Resampling.LANCZOS)
    clean = pillow.new("RGB", picture.size, "white")
    clean.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    return clean


def _eight_bits(picture: Picture) -> Picture:
    """Deep greys scaled to eight bits: Pillow's own conversion turns all above 255 white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = picture.convert("F")
    sixteen = picture.mode.startswith("I;16")
    low, high = (0.0, 65535.0) if sixteen else cast("tuple[float, float]", values.getextrema())
    scale = 255 / ((high - low) or 1)
    return values.point(lambda value: value * scale - low * scale).convert("L")


def _decode_failure(data: bytes, source: str, error: Exception) -> tuple[str, str]:
    """What happened, and what to do."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    if isinstance(error, pillow.DecompressionBombError):
        return _too_many_pixels(source, "too many pixels")
    if isinstance(error, MemoryError):
        return f"`{source}` does not fit in memory", "shrink it first"
    if isinstance(error, UnidentifiedImageError):
        return _not_an_image(data, source)
    return f"`{source}` is damaged: {error}", "was it cut? download or export it again"


def _too_many_pixels(source: str, size: str) -> tuple[str, str]:
    return f"`{source}` is too large: {size}", f"shrink it to {MAX_SIDE} pixels a side"


def _not_an_image(data: bytes, source: str) -> tuple[str, str]:
    name = shlex.quote(source) if Path(source).suffix and "://" not in source else "IMAGE"
    what, hint = {
        "svg": (
            "is an SVG drawing, which has no pixels yet",
            f"convert it: `rsvg-convert -w 1024 {name} -o image.png`",
        ),
        "heic": ("is HEIC, which is not supported", f"convert it: `magick {name} image.jpg`"),
        "pdf": ("is a PDF document", f"convert a page: `pdftoppm -png -r 100 -singlefile {name} image`"),
        "video": ("is a video", f"take one frame: `ffmpeg -i {name} -frames:v 1 image.png`"),
        "html": ("is a web page", "pass the image itself, not the page that shows it"),
        "lfs": ("is a Git LFS pointer, not the image", "fetch the image: `git lfs pull`"),
        "text": ("is text, not an image", READABLE),
        "": ("is not an image", READABLE),
    }[_kind(data)]
    return f"`{source}` {what}", hint


def _kind(data: bytes) -> str:
    """What `data` is instead of an image; empty where nothing is known."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    starts = {b"<!doctype html": "html", b"<html": "html", b"%pdf": "pdf", b"version https://git-lfs": "lfs"}
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    if b"<svg" in head:
        return "svg"
    if data[4:8] == b"ftyp" and not data[8:12].startswith(b"avi"):
        return "heic" if data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1") else "video"
    return "text" if re.fullmatch(rb"[\t-\r -~\x80-\xff]+", data[:1024]) and b"\0" not in data else ""
