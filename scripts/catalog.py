"""Check the catalog of models against the Hub and Ollama's registry, or make an entry of a repository.

catalog.py check
    Every repository and tag must exist, and sizes and numbers of parameters must agree. Prints one line for each
    failure; the exit status is 1 if there is any.
catalog.py add OWNER/NAME [--gguf OWNER/NAME] [--ollama TAG] [--write]
    Prints the entry of a repository in Hugging Face form; `--write` appends it to the catalog.

HF_ENDPOINT and OLLAMA_REGISTRY name other servers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from llmdeploy.engines.ollama.registry import Registry
from llmdeploy.errors import DownloadFailed
from llmdeploy.models.catalog import lookup, schema
from llmdeploy.models.catalog.entry import CatalogEntry, plain_quant
from llmdeploy.models.catalog.names import SHIPPED
from llmdeploy.models.quantization import quant_of

VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|multi_modal_projector|mm_projector)\.")
PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
SIZE = re.compile(r"(?P<family>.+?)-(?P<size>[\d.]+[bm])(?:-(?:instruct|chat|it))?")


def main() -> int:
    """Run the command that the arguments name, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("check", help="compare the catalog with the Hub and Ollama's registry")
    checks.add_argument("names", nargs="*", help="models to check (default: all)")
    adds = commands.add_parser("add", help="make an entry of a repository")
    adds.add_argument("repository", metavar="OWNER/NAME")
    adds.add_argument("--gguf", metavar="OWNER/NAME", help="the repository with its GGUF files")
    adds.add_argument("--ollama", metavar="TAG", help="its tag in Ollama's registry")
    adds.add_argument("--write", action="store_true", help="append the entry to the catalog")
    arguments = parser.parse_args()
    if arguments.command == "check":
        return check([lookup.find(name) for name in arguments.names] or list(lookup.load().values()))
    try:
        text = entry_of(arguments.repository, arguments.gguf, arguments.ollama)
    except HfHubHTTPError as error:
        print(f"error: {arguments.repository}: {_reason(error)}", file=sys.stderr)
        return 1
    if arguments.write:
        SHIPPED.write_text(f"{SHIPPED.read_text(encoding='utf-8').rstrip()}\n\n{text}", encoding="utf-8")
    else:
        print(text, end="")
    return 0


# Check


def check(entries: Iterable[CatalogEntry]) -> int:
    """Print what is wrong with each entry, and return the exit status."""
    with ThreadPoolExecutor(8) as threads:
        failures = [failure for found in threads.map(lambda it: list(failures_of(it)), entries) for failure in found]
    print(*failures, sep="\n", end="\n" if failures else "")
    return 1 if failures else 0


def failures_of(entry: CatalogEntry) -> Iterator[str]:
    """Yield one line for each fact of an entry that its sources contradict."""
    if not entry.shipped:
        for place, problems in (
            *((f"hf://{it}", _repository(entry, quant, it)) for quant, it in entry.repositories.items()),
            *((f"hf://{it.repo}", _gguf(entry)) for it in [entry.gguf_files] if it and it.repo),
            *((f"ollama://{it}", _tag(it)) for it in dict.fromkeys((entry.tag, *entry.tags.values())) if it),
        ):
            try:
                yield from (f"{entry.name}: {place}: {problem}" for problem in problems)
            except HfHubHTTPError as error:
                yield f"{entry.name}: {place}: {_reason(error)}"
            except DownloadFailed as error:
                yield f"{entry.name}: {place}: {error.message}"


def _repository(entry: CatalogEntry, quant: str, repository: str) -> Iterator[str]:
    """Yield what is wrong with a repository in Hugging Face form."""
    files = tree(repository)
    if "config.json" not in files or not any(name.endswith((".safetensors", ".bin")) for name in files):
        yield "it holds no config.json or no weights"
    if quant == "bf16":
        told = HfApi().model_info(repository).safetensors
        if told is not None and told.total != entry.parameters:
            yield f"it has {told.total:_} parameters, the catalog says {entry.parameters:_}"


def _gguf(entry: CatalogEntry) -> Iterator[str]:
    """Yield what is wrong with the repository of the GGUF files."""
    wanted = entry.gguf
    files = tree(wanted.repo or "")
    for quant in wanted.quants:
        file = wanted.file.replace("{quant}", quant)
        size = _size(files, file)
        if not size:
            yield f"`{file}` does not exist"
        elif wanted.sizes.get(quant, size) != size:
            yield f"`{file}` has {size:_} bytes, the catalog says {wanted.sizes[quant]:_}"
    if wanted.mmproj is not None and wanted.mmproj not in files:
        yield f"`{wanted.mmproj}` does not exist"
    elif wanted.mmproj is not None and wanted.mmproj_bytes not in (0, files[wanted.mmproj]):
        yield f"`{wanted.mmproj}` has {files[wanted.mmproj]:_} bytes, the catalog says {wanted.mmproj_bytes:_}"


def _tag(tag: str) -> Iterator[str]:
    """Ask Ollama's registry for a tag. Raises DownloadFailed."""
    scheme, _, host = os.environ.get("OLLAMA_REGISTRY", "https://registry.ollama.ai").partition("://")
    name = tag if "/" in tag else f"library/{tag}"
    Registry(f"{host}/{name}", scheme=scheme).manifest()
    yield from ()


@cache
def tree(repository: str) -> dict[str, int]:
    """Return the sizes of all files of a repository by their paths. Raises HfHubHTTPError."""
    entries = HfApi().list_repo_tree(repository, recursive=True)
    return {it.path: it.size for it in entries if hasattr(it, "size")}


def _size(files: dict[str, int], file: str) -> int:
    """Return the size of a GGUF file, all its parts counted; 0 if it is not there."""
    if not PART.search(file):
        return files.get(file, 0)
    whole = PART.sub("", file)
    return sum(size for name, size in files.items() if file in files and PART.sub("", name) == whole)


def _reason(error: HfHubHTTPError) -> str:
    return f"the Hub answers with status {error.response.status_code}"


# Add


def entry_of(repository: str, gguf: str | None = None, ollama: str | None = None) -> str:
    """Return the TOML text of an entry, checked by the rules of the catalog. Raises HfHubHTTPError, ConfigError."""
    info = HfApi().model_info(repository)
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(Path(hf_hub_download(repository, "config.json", local_dir=folder)).read_text())
    language = config.get("text_config") or config
    parameters, vision = _parameters(repository)
    card = info.card_data.get("license") if info.card_data else None
    table = {
        "ollama": ollama,
        "license": card,
        "gated": True if info.gated else None,
        "capabilities": ["text", "image"] if vision else None,
        "context": language.get("max_position_embeddings"),
        "parameters": parameters,
        "vision": vision or None,
        "tied": True if config.get("tie_word_embeddings", language.get("tie_word_embeddings")) else None,
        "embedding": language.get("hidden_size"),
        "vocabulary": language.get("vocab_size"),
        "hub": {"bf16": repository},
        "gguf": _gguf_table(gguf) if gguf else None,
    }
    text = f'[models."{_name(repository)}"]\n' + "".join(
        f"{key} = {_written(value)}\n" for key, value in table.items() if value is not None
    )
    schema.check(tomllib.loads(text), repository)
    return text


def _parameters(repository: str) -> tuple[int, int]:
    """Return the number of parameters, by the headers of the safetensors files, and those of the vision tower."""
    found = HfApi().get_safetensors_metadata(repository)
    tensors = [(name, it) for file in found.files_metadata.values() for name, it in file.tensors.items()]
    vision = sum(it.parameter_count for name, it in tensors if VISION.search(name))
    return sum(it.parameter_count for _, it in tensors), vision


def _gguf_table(repository: str) -> dict[str, Any]:
    """Return the `gguf` table of a repository: the files of one model in several quantizations."""
    files = tree(repository)
    patterns: dict[str, dict[str, str]] = {}
    for file in sorted(files):
        if file.endswith(".gguf") and "mmproj" not in file and (quant := quant_of(file)):
            at = file.upper().rindex(quant)
            written = file[at : at + len(quant)]
            patterns.setdefault(PART.sub("", file.replace(written, "{quant}")), {}).setdefault(written, file)
    found = max(patterns.values(), key=len, default={})
    order = sorted(found, key=lambda quant: (plain_quant(quant) != "Q4_K_M", quant))
    if not order:
        raise SystemExit(f"error: `{repository}` holds no GGUF files with a quantization in their names")
    projectors = sorted((file for file in files if file.endswith(".gguf") and "mmproj" in file), key=files.__getitem__)
    table: dict[str, Any] = {
        "repo": repository,
        "file": found[order[0]].replace(order[0], "{quant}"),
        "quants": order,
        "bytes": {quant: _size(files, found[quant]) for quant in order},
    }
    if projectors:
        table |= {"mmproj": projectors[-1], "mmproj_bytes": files[projectors[-1]]}
    return table


def _name(repository: str) -> str:
    """Return the name of an entry: the family and the size, as the repository has them."""
    name = repository.partition("/")[2].lower()
    match = SIZE.fullmatch(name)
    return f"{match['family']}:{match['size']}" if match else name


def _written(value: Any) -> str:
    """Return a value as the catalog writes it: thousands apart, tables on one line."""
    if isinstance(value, bool) or not isinstance(value, int | dict):
        return str(tomlkit.item(value).as_string())
    if isinstance(value, int):
        return f"{value:_}"
    return "{ " + ", ".join(f"{tomlkit.key(key).as_string()} = {_written(it)}" for key, it in value.items()) + " }"


if __name__ == "__main__":
    sys.exit(main())
