"""Images for a chat request, from a path, a URL or standard input.

A PNG or JPEG that every engine decodes alike is passed on unchanged. Any other image is decoded and encoded again:
upright, on white instead of transparency, and no larger than `MAX_SIDE`.
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

# Models shrink larger images: more pixels would cost time and prompt tokens and show nothing more.
MAX_SIDE = 2048
# Photos of 108 megapixels, the largest that phones take, are accepted; decoded they take 324 MB.
MAX_PIXELS = 120_000_000

# Pillow reads more formats, some by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read"


@dataclass(frozen=True)
class Image:
    """A checked image; `width` and `height` in pixels, `source` as the user gave it."""

    data: bytes
    media_type: str
    width: int
    height: int
    source: str

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def load(source: str, stdin: BinaryIO | None = None, *, timeout: float = 30.0) -> Image:
    """Load an image: `-` is standard input; else an http(s), data or file URL, or a path.

    `timeout` limits a whole download, in seconds. Raises ImageInvalid.
    """
    return decode(*image_sources.read(source, stdin, timeout))


def decode(data: bytes, source: str) -> Image:
    """Check and decode all of `data`, and return the image to send. Raises ImageInvalid."""
    if not data:
        raise ImageInvalid(f"`{source}` is empty", "was it written or downloaded in full?")
    # Pillow warns about odd but readable files, which does not help the user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, source)
        except ImageInvalid:
            raise
        except Exception as error:  # on hostile bytes a decoder may raise any exception
            raise ImageInvalid(*_decode_failure(data, source, error)) from error


def _decode(data: bytes, source: str) -> Image:
    from PIL import Image as pillow

    checked = pillow.open(io.BytesIO(data), formats=FORMATS)
    width, height = checked.size
    if width * height > MAX_PIXELS:
        raise ImageInvalid(*_too_many_pixels(source, f"{width} x {height} pixels"))
    checked.verify()  # checks the checksums; the object cannot be used afterwards
    picture: Picture = pillow.open(io.BytesIO(data), formats=FORMATS)
    picture.load()
    is_jpeg = checked.format in ("JPEG", "MPO")  # MPO: a JPEG followed by more pictures, as many phones write
    if (is_jpeg or checked.format == "PNG") and _is_plain(picture):
        return Image(data, "image/jpeg" if is_jpeg else "image/png", width, height, source)
    picture = _plain(picture)
    file = io.BytesIO()
    # A photograph stays a JPEG: as a PNG it would be five times as large.
    picture.save(file, "JPEG", quality=95) if is_jpeg else picture.save(file, "PNG")
    return Image(file.getvalue(), "image/jpeg" if is_jpeg else "image/png", *picture.size, source)


def _is_plain(picture: Picture) -> bool:
    """Return whether every engine's decoder produces the same picture."""
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
    except Exception:  # the pixels may be fine even if the EXIF data is broken
        return False


def _transparent(picture: Picture) -> bool:
    return picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _plain(picture: Picture) -> Picture:
    """Return the picture upright, small enough, with eight bits per colour, on white, and without metadata."""
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
    """Scale greyscale with more than eight bits to eight: Pillow's conversion turns every value above 255 white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = picture.convert("F")
    sixteen = picture.mode.startswith("I;16")
    low, high = (0.0, 65535.0) if sixteen else cast("tuple[float, float]", values.getextrema())
    scale = 255 / ((high - low) or 1)
    return values.point(lambda value: value * scale - low * scale).convert("L")


def _decode_failure(data: bytes, source: str, error: Exception) -> tuple[str, str]:
    """Return a message and a hint for an image that cannot be decoded."""
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
            "is an SVG drawing, which is not supported",
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
    """Guess what `data` is instead of an image; empty if unknown."""
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
