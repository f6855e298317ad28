from __future__ import annotations

import base64
import errno
import io
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as pillow

from llmdeploy import image_sources, images
from llmdeploy.errors import ImageInvalid
from tests.conftest import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RED = (220, 30, 30)
EXAMPLES = Path(__file__).parent.parent / "examples"


def encoded(picture: pillow.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(image: images.Image) -> pillow.Image:
    picture = pillow.open(io.BytesIO(image.data))
    assert picture.size == (image.width, image.height)
    assert pillow.MIME[picture.format or ""] == image.media_type
    return picture


def one_colour_palette() -> pillow.Image:
    picture = pillow.new("P", (4, 4), 1)
    picture.putpalette([9] * 9)
    return picture


def noise(width: int, height: int) -> pillow.Image:
    return pillow.frombytes("RGB", (width, height), os.urandom(3 * width * height))


PNG = encoded(pillow.new("RGB", (40, 30), RED), "PNG")
JPEG = encoded(pillow.new("RGB", (40, 30), RED), "JPEG")


def failure(source: str, stdin: io.BytesIO | None = None, timeout: float = 10.0) -> str:
    """Return the message and the hint of the error."""
    with pytest.raises(ImageInvalid) as caught:
        images.load(source, stdin, timeout=timeout)
    assert caught.value.hint
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    monkeypatch.chdir(tmp_path)

    def write(name: str, data: bytes) -> str:
        Path(name).write_bytes(data)
        return name

    return write


# Images that are passed on, and images that are encoded again


@pytest.mark.parametrize(("data", "media_type"), [(PNG, "image/png"), (JPEG, "image/jpeg")])
def test_plain_images_are_passed_on_as_they_are(put: Any, data: bytes, media_type: str) -> None:
    image = images.load(put("photo", data))  # the content counts, not the name
    assert image == images.Image(data, media_type, 40, 30, "photo")
    assert image.data_url == f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_the_examples(colour: str) -> None:
    image = images.load(str(EXAMPLES / f"{colour}.png"))
    assert (image.width, image.height) == (224, 224)
    assert image.data == (EXAMPLES / f"{colour}.png").read_bytes()
    expected = {"red": (220, 30, 30), "blue": (30, 60, 220)}[colour]
    assert decoded(image).convert("RGB").getcolors() == [(224 * 224, expected)]


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_become_png(kind: str) -> None:
    image = images.load("-", io.BytesIO(encoded(pillow.new("RGB", (40, 30), RED), kind)))
    assert image.media_type == "image/png"
    pixel = decoded(image).getpixel((20, 15))
    assert isinstance(pixel, tuple)
    assert all(abs(got - sent) <= 3 for got, sent in zip(pixel, RED, strict=True))


def test_only_the_first_frame_of_an_animation() -> None:
    frames = [pillow.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(images.decode(data, "x")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("kind", "media_type"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_rotated_photo_is_turned_upright(kind: str, media_type: str) -> None:
    picture = pillow.new("RGB", (60, 20), "blue")
    picture.paste(RED, (0, 0, 20, 20))  # the left side becomes the top
    exif = pillow.Exif()
    exif[0x0112] = 6
    image = images.decode(encoded(picture, kind, exif=exif), "x")
    assert (image.media_type, image.width, image.height) == (media_type, 20, 60)
    upright = decoded(image).convert("RGB")
    assert upright.getexif().get(0x0112, 1) == 1
    top, bottom = upright.getpixel((10, 5)), upright.getpixel((10, 55))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > bottom[0]


def test_broken_exif_data_is_ignored() -> None:
    data = encoded(pillow.new("RGB", (40, 30), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert images.decode(data, "x").data == data


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2048, 100), (2048, 100)), ((4096, 1000), (2048, 500)), ((300, 5000), (123, 2048)), ((9000, 1), (2048, 1))],
)
def test_large_images_are_shrunk(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = images.decode(encoded(pillow.new("RGB", size, RED), "JPEG"), "x")
    assert (image.width, image.height) == expected
    assert decoded(image).format == "JPEG"


@pytest.mark.parametrize(
    "data",
    [
        encoded(pillow.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"),
        encoded(pillow.new("LA", (4, 4), (0, 0)), "PNG"),
        encoded(pillow.new("L", (4, 4), 9), "PNG", transparency=9),
        encoded(pillow.new("RGB", (4, 4), RED), "PNG", transparency=RED),
        encoded(one_colour_palette(), "PNG", transparency=1),
        encoded(pillow.new("RGBA", (4, 4), (0, 0, 0, 0)), "WEBP"),
    ],
)
def test_transparency_becomes_white(data: bytes) -> None:
    image = images.decode(data, "x")
    assert decoded(image).convert("RGB").getcolors() == [(16, (255, 255, 255))]
    assert decoded(image).mode == "RGB"


def test_partial_transparency_is_blended_with_white() -> None:
    image = images.decode(encoded(pillow.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"), "x")
    assert decoded(image).getpixel((0, 0)) == (127, 127, 127)


def test_image_with_opaque_alpha_channel_is_unchanged() -> None:
    data = encoded(pillow.new("RGBA", (4, 4), (*RED, 255)), "PNG")
    assert images.decode(data, "x").data == data


def test_16_bit_greyscale_keeps_its_brightness() -> None:
    image = images.decode(encoded(pillow.new("I;16", (4, 4), 0x8080), "PNG"), "x")
    assert decoded(image).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_becomes_rgb() -> None:
    image = images.decode(encoded(pillow.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "x")
    pixel = decoded(image).getpixel((4, 4))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


# Sources


def test_standard_input() -> None:
    assert images.load("-", io.BytesIO(PNG)) == images.Image(PNG, "image/png", 40, 30, "standard input")


def test_standard_input_of_the_process() -> None:
    script = "from llmdeploy import images; print(images.load('-').width)"
    result = subprocess.run([sys.executable, "-c", script], input=PNG, capture_output=True, check=True)
    assert result.stdout.split() == [b"40"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_terminal_is_not_read() -> None:
    ours, theirs = os.openpty()
    try:
        with os.fdopen(theirs, "rb", buffering=0) as terminal:
            assert failure("-", terminal) == (  # type: ignore[arg-type]
                "standard input is a terminal, not an image\npipe one in: `llmdeploy chat --image - < photo.jpg`"
            )
    finally:
        os.close(ours)


def test_home_folder_is_expanded(put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put("red.png", PNG)
    assert images.load("~/red.png").data == PNG


def test_file_url(put: Any, tmp_path: Path) -> None:
    put("a photo.png", PNG)
    assert images.load((tmp_path / "a photo.png").as_uri()).data == PNG
    assert failure("file://server/share/photo.png").startswith("`file://server/share/photo.png` is on another machine")


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
        f"DATA:image/png;BASE64,{base64.b64encode(PNG).decode()}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
def test_data_url(url: str) -> None:
    assert images.load(url) == images.Image(PNG, "image/png", 40, 30, "the data URL")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,abc", "broken base64"),
        ("data:image/png;base64,*", "broken base64"),
        ("data:image/png", "holds no data"),
        ("data:,hello", "is text, not an image"),
        ("data:,", "is empty"),
    ],
)
def test_broken_data_url(url: str, words: str) -> None:
    assert words in failure(url)


# Files that are not images


def test_missing_file_suggests_similar_names(put: Any) -> None:
    put("Red.png", PNG)
    assert failure("rde.png") == "`rde.png` does not exist\ndid you mean `Red.png`?"


def test_missing_file_lists_images_in_the_folder(put: Any) -> None:
    for number in range(5):
        put(f"{number}.png", PNG)
    put("notes.txt", b"")
    assert failure("holiday") == "`holiday` does not exist\nimages there: `0.png`, `1.png`, `2.png` and 2 more"


def test_a_missing_folder(put: Any) -> None:
    assert failure("no/photo.png") == "`no/photo.png` does not exist\nthe folder `no` does not exist"
    put("file", PNG)
    assert failure("file/photo.png") == "`file/photo.png` does not exist\nthe folder `file` does not exist"


def test_a_folder(put: Any) -> None:
    Path("photos").mkdir()
    assert failure("photos") == "`photos` is a folder\nname one image"
    put("photos/a.png", PNG)
    assert failure("photos") == f"`photos` is a folder\nimages there: `{Path('photos/a.png')}`"


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_no_permission(put: Any) -> None:
    Path(put("secret.png", PNG)).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        message = failure("secret.png")
    finally:
        if user == 0:
            os.seteuid(0)
    assert message.startswith("`secret.png` cannot be read: permission denied\nallow it: `chmod +r secret.png`")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_named_pipe_is_not_read(put: Any) -> None:
    os.mkfifo("pipe")
    assert (
        failure("pipe") == "`pipe` is not a regular file\npass it on standard input: `llmdeploy chat --image - < pipe`"
    )


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, ""])
def test_impossible_paths(put: Any, source: str) -> None:
    assert len(failure(source)) < 400


def test_an_unreadable_disk() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert failure("-", Broken()).startswith("`standard input` cannot be read: Input/output error\n")


def test_an_endless_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "MAX_LOCAL", 2**20)

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size > 0
            return bytes(size)

    assert "`standard input` is larger than 1 MiB" in failure("-", Endless())


def test_unsupported_scheme() -> None:
    assert failure("ftp://example.org/a.png").startswith("`ftp://example.org/a.png` cannot be fetched: `ftp` addresses")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.png", b"", "is empty\nwas it written"),
        ("notes.txt", "Grüße\n".encode(), "is text, not an image\nPNG, JPEG"),
        ("blob", bytes(range(256)) * 4, "is not an image\nPNG, JPEG"),
        (
            "a b.svg",
            b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "rsvg-convert -w 1024 'a b.svg'",
        ),
        ("a.svg", b"\xef\xbb\xbf  <svg/>", "is an SVG drawing, which is not supported"),
        ("page.png", b"<!DOCTYPE html><html><svg/></html>", "is a web page"),
        ("a.pdf", b"%PDF-1.7\n\x00", "is a PDF document"),
        (
            "a.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "is HEIC, which is not supported\nconvert it: `magick a.heic",
        ),
        ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0", "is a video"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is text, not an image"),
    ],
)
def test_other_content_is_recognised(put: Any, name: str, data: bytes, words: str) -> None:
    message = failure(put(name, data))
    assert message.startswith(f"`{name}` ")
    assert words in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_file_is_damaged(put: Any, kind: str) -> None:
    data = encoded(noise(200, 100), kind)
    message = failure(put("photo", data[: len(data) // 2]))
    assert re.match(r"`photo` is (damaged: .+|not an image)\n", message)


def test_wrong_checksum_is_damaged(put: Any) -> None:
    data = bytearray(encoded(noise(64, 64), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert failure(put("photo.png", bytes(data))).startswith("`photo.png` is damaged: ")


@pytest.mark.parametrize("size", [(12_000, 11_000), (20_000, 20_000)])
def test_a_decompression_bomb_is_not_decoded(put: Any, size: tuple[int, int]) -> None:
    bomb = encoded(pillow.new("1", size), "PNG")
    assert len(bomb) < 100_000
    began = time.monotonic()
    assert failure(put("bomb.png", bomb)).startswith("`bomb.png` is too large: ")
    assert time.monotonic() - began < 2 * BUSY


def test_warnings_of_pillow_are_hidden(put: Any) -> None:
    large = encoded(pillow.new("1", (10_000, 9_500)), "PNG")  # Pillow warns about a decompression bomb
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert images.load(put("large.png", large)).height == 1946
    assert seen == []


# Downloads


class Site(BaseHTTPRequestHandler):
    """Request handler with good and bad answers by path."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, body: bytes, kind: str = "image/png", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.close_connection = True
        getattr(self, self.path.strip("/").split("?")[0])()

    def good(self) -> None:
        self.send(PNG, kind="application/octet-stream")

    def moved(self) -> None:
        self.send(b"", status=302, Location="/good")

    def loop(self) -> None:
        self.send(b"", status=302, Location="/loop")

    def elsewhere(self) -> None:
        self.send(b"", status=302, Location="ftp://example.org/a.png")

    def missing(self) -> None:
        self.send(b"no", status=404)

    def forbidden(self) -> None:
        self.send(b"no", status=403)

    def broken(self) -> None:
        self.send(b"no", status=503)

    def page(self) -> None:
        self.send(b"<html>", kind="text/html; charset=utf-8")

    def disguised(self) -> None:
        self.send(b"<!doctype html><title>log in</title>")

    def cut(self) -> None:
        self.send(PNG[:50], length=str(len(PNG)))

    def declared(self) -> None:
        self.send(b"", length=str(2**40))

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            while not self.released.is_set():
                self.wfile.write(chunk)
        except OSError:
            pass  # the reader has had enough

    def silent(self) -> None:
        self.released.wait(60)

    def dripping_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.drip()

    def dripping_body(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.drip()

    def drip(self) -> None:
        try:
            while not self.released.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            pass  # the reader has had enough


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # clients that disconnect are expected here


@pytest.fixture
def site() -> Iterator[str]:
    Site.released.clear()
    with Server(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Site.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_fetch(site: str) -> None:
    assert images.load(f"{site}/good") == images.Image(PNG, "image/png", 40, 30, f"{site}/good")


def test_redirects_are_followed(site: str) -> None:
    assert images.load(f"{site}/moved").data == PNG


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", " answered 404 Not Found\ncheck the address, or download"),
        ("forbidden", " answered 403 Forbidden\nit needs a login, or download"),
        ("broken", " answered 503 Service Unavailable\nthe site has a problem: try again later"),
        ("page", " is a web page\npass the address of the image itself"),
        ("disguised", " is a web page\n"),
        ("cut", " broke off its answer\ntry again"),
        ("declared", " is larger than 32 MiB\n"),
        ("chunked", " is larger than 32 MiB\n"),
        ("loop", " cannot be fetched: it redirects without end\n"),
        ("elsewhere", " is not an address\n"),
    ],
)
def test_bad_answers(site: str, path: str, words: str) -> None:
    message = failure(f"{site}/{path}")
    assert message.startswith(f"`{site}/{path}`{words}")


@pytest.mark.parametrize("path", ["silent", "dripping_headers", "dripping_body"])
def test_slow_site_times_out(site: str, path: str) -> None:
    began = time.monotonic()
    message = failure(f"{site}/{path}", timeout=0.5)
    assert time.monotonic() - began < 2 * BUSY
    assert message.startswith(f"`{site}/{path}` did not arrive within 0.5 s\n")


def test_a_refused_connection(free_port: int) -> None:
    message = failure(f"http://127.0.0.1:{free_port}/a.png")
    assert "`127.0.0.1` refused the connection" in message


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:  # a fake resolver, because a real one may take long
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = failure("http://nowhere.invalid/a.png")
    assert message == (
        "`http://nowhere.invalid/a.png` cannot be fetched: the host name `nowhere.invalid` is unknown\n"
        "check the address and the network"
    )


def test_hanging_resolver_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        released.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert " did not arrive within 0.2 s" in failure("http://nowhere.invalid/a.png", timeout=0.2)
    released.set()


def test_https_to_an_http_server(site: str) -> None:
    message = failure(f"{site.replace('http', 'https')}/good")
    assert "`127.0.0.1` does not speak TLS there" in message


def test_untrusted_certificate() -> None:
    error = ssl.SSLCertVerificationError(1, "self-signed certificate")
    message, hint = image_sources._fetch_failure("https://example.org/a.png", error)
    assert message.endswith("the certificate of `example.org` is not trusted")
    assert "SSL_CERT_FILE" in hint


@pytest.mark.parametrize("url", ["http://", "http://[::1", "https://exa mple.org/a", "http:///a.png", "http://x:y/a"])
def test_invalid_url(url: str) -> None:
    assert failure(url).startswith(f"`{url}` ")


def test_loopback_is_fetched_without_the_proxy(site: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port}")  # nothing listens there
    assert images.load(f"{site}/good").data == PNG
    assert images.load(f"{site.replace('127.0.0.1', 'localhost')}/moved").data == PNG


def test_other_hosts_are_fetched_through_the_proxy(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def proxied(handler: Site) -> None:
        asked.append(handler.path)
        handler.send(PNG)

    monkeypatch.setattr(Site, "do_GET", proxied)
    monkeypatch.setenv("HTTP_PROXY", site)
    assert images.load("http://example.org/a.png").data == PNG
    assert asked == ["http://example.org/a.png"]


def test_invalid_proxy_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://127.0.0.1")
    assert failure("http://example.org/a.png").startswith("`http://example.org/a.png` cannot be fetched: ")


def test_passwords_are_not_printed(site: str) -> None:
    url = site.replace("//", "//me:secret@")
    assert "secret" not in failure(f"{url}/missing")
    assert images.load(f"{url}/good").source == f"{site}/good"
