"""The README's tables of facts, rendered from the code; ``python -m tests.docs.tables`` writes them into the README.

Each stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; a test compares.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ipe_events.bus.contexts import ENVIRONMENT
from ipe_events.bus.topology import DEFAULT_LIMITS
from ipe_events.cli.main import NOUNS
from ipe_events.subjects import TOPICS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
_KINDS = {"counter", "gauge", "histogram"}


def table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def topics() -> str:
    rows = [(topic.name, f"`{topic.pattern}`", f"`{topic.stream}`" if topic.stream else "service", topic.doc) for topic in TOPICS]
    return table(("topic", "subject", "stream", "what"), rows)


def streams() -> str:
    def age(hours: float) -> str:
        return f"{hours:g} h" if hours < 7 * 24 else f"{hours / 24:g} d"

    rows = [(f"`{name}`", age(limits.hours), f"{limits.gib:g} GiB") for name, limits in DEFAULT_LIMITS.items()]
    return table(("stream", "keeps for", "up to"), rows)


def nouns() -> str:
    return table(("noun", "what it does"), [(f"`ipe {noun}`", line) for noun, (_, line) in sorted(NOUNS.items())])


def metrics() -> str:
    rows = [(f"`{name}`", kind, ", ".join(labels), doc) for name, kind, labels, doc in sorted(declared_metrics())]
    return table(("metric", "kind", "labels", "what"), rows)


def environment() -> str:
    rows = [(f"`{variable}`", f"`{attribute}`") for variable, attribute in ENVIRONMENT.items()]
    return table(("variable", "sets"), rows)


def declared_metrics() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and help of every metric that the package declares, read from its source."""
    for file in sorted((ROOT / "ipe_events").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _KINDS):
                continue
            values = [ast.literal_eval(argument) for argument in node.args[:3]]
            labels = values[2] if len(values) > 2 else ()
            for keyword in node.keywords:
                if keyword.arg == "labels":
                    labels = ast.literal_eval(keyword.value)
            yield values[0], node.func.id, tuple(labels), values[1]


TABLES = {"topics": topics, "streams": streams, "nouns": nouns, "metrics": metrics, "environment": environment}


def filled(text: str) -> str:
    """The README's text with every table as the code has it now."""
    for name, render in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no {begin} … {end}")
        text = pattern.sub(f"{begin}\n{render()}\n{end}".replace("\\", r"\\"), text)
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
