"""Remarks on weights whose place is not what their name says."""

from __future__ import annotations

from pathlib import Path

from llmdeploy.config import Settings
from llmdeploy.models import gguf, hf_model
from llmdeploy.service.launch import remarks
from llmdeploy.service.order import Order
from tests.conftest import SELFTEST

WEIGHTS = SELFTEST / "selftest-f16.gguf"


def test_link_out_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    link = tmp_path / "project" / "model.gguf"
    link.symlink_to(WEIGHTS)
    said = (f"`{link}` is a link to `{WEIGHTS}`",)
    assert remarks(Order(link, Settings()), gguf.find(link)) == said
    assert remarks(Order(WEIGHTS, Settings()), gguf.find(WEIGHTS)) == ()
    beside = tmp_path / "project" / "beside.gguf"
    beside.symlink_to("real.gguf")
    beside.with_name("real.gguf").write_bytes(WEIGHTS.read_bytes())
    assert remarks(Order(beside, Settings()), gguf.find(beside)) == ()


def test_link_in_a_folder_in_hugging_face_form_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (SELFTEST / "hf").iterdir():
        (folder / file.name).symlink_to(file)
    [said] = remarks(Order(folder, Settings()), hf_model.find(folder))
    assert said == f"`{folder / 'config.json'}` is a link to `{SELFTEST / 'hf' / 'config.json'}`"
