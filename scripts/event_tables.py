"""Write the tables of events into README.md and README.zh-CN.md, from the events as they are now.

python scripts/event_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec

from llmdeploy.service.events import Public

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- events -->", "<!-- end of events -->"

HEAD = """| `event` | fields, and `elapsed` (seconds) in all but `stopping` | meaning |
| --- | --- | --- |
"""
CHINESE_HEAD = """| `event` | 字段；除 `stopping` 外都有 `elapsed`（秒） | 含义 |
| --- | --- | --- |
"""
CHINESE = {
    "phase": "启动进入了一个阶段。",
    "percent": "该阶段的进度。",
    "wait": "该阶段仍在进行；`line` 是服务器日志的最后一行。",
    "note": "给用户的说明。",
    "fetching": "开始下载；`bytes` 未知时由 `reason` 说明原因。",
    "download": "文件的 `total` 字节中已有 `done` 字节到达。",
    "plan": "服务器的设置，以及它需要的内存。",
    "loaded": "模型已在内存中：`detail` 说明位置，`context` 是一个请求最多的 token 数。",
    "room": "新服务器是否与旧服务器同时运行，以及原因。",
    "step": "切换进入了一个步骤：`check`、`prepare`、`prove`、`commit`、`finish` 或 `undo`。",
    "switched": "切换完成：现在由该引擎和模型提供服务。",
    "stopping": "服务被要求停止。",
}


def tables() -> dict[str, str]:
    """Return each README with the table that belongs into it."""
    events = [(msgspec.inspect.type_info(event), event.__doc__ or "") for event in get_args(Public)]
    english, chinese = HEAD, CHINESE_HEAD
    for info, meaning in events:
        assert isinstance(info, msgspec.inspect.StructType)
        fields = [f"`{field.encode_name}`" for field in info.fields]
        english += f"| `{info.tag}` | {', '.join(fields)} | {' '.join(meaning.split())} |\n"
        chinese += f"| `{info.tag}` | {'、'.join(fields)} | {CHINESE[str(info.tag)]} |\n"
    return {"README.md": english, "README.zh-CN.md": chinese}


def with_table(text: str, table: str) -> str:
    """Return the text with the table between the two marks."""
    return re.sub(f"{BEGIN}\n.*?{END}", f"{BEGIN}\n{table}{END}".replace("\\", "\\\\"), text, flags=re.DOTALL)


if __name__ == "__main__":
    for name, table in tables().items():
        file = ROOT / name
        file.write_text(with_table(file.read_text(encoding="utf-8"), table), encoding="utf-8")
