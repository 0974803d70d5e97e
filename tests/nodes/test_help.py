"""What an artist reads: tooltips on everything, a help page per node, and the English texts in locales/."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

from latent_physics.nodes import LatentPhysicsExtension

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).parents[2]
LOCALE = ROOT / "locales" / "en" / "nodeDefs.json"


@pytest.fixture(scope="module")
def schemas():
    return [node.GET_SCHEMA() for node in asyncio.run(LatentPhysicsExtension().get_node_list())]


def test_ids_and_categories(schemas):
    ids = [schema.node_id for schema in schemas]
    assert len(ids) == len(set(ids))
    for schema in schemas:
        assert schema.node_id.startswith("LatentPhysics")
        assert schema.category.startswith("latent physics")
        assert schema.display_name
        assert schema.description


def test_every_input_and_output_has_a_tooltip(schemas):
    for schema in schemas:
        for thing in [*schema.inputs, *schema.outputs]:
            assert thing.tooltip, f"{schema.node_id}: {getattr(thing, 'id', thing)} has no tooltip"


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(schemas):
    for schema in schemas:
        text = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert "## Input" in text or not schema.inputs
        assert "## Output" in text
        for name in [
            *(thing.id for thing in schema.inputs),
            *(thing.display_name or thing.io_type for thing in schema.outputs),
        ]:
            assert f"**{name}**" in text, f"{schema.node_id}.md does not say what {name} is"


def definitions(schemas) -> dict:
    return {
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                thing.id: {"name": thing.display_name or thing.id, "tooltip": thing.tooltip}
                for thing in schema.inputs
            },
            "outputs": {
                str(n): {"name": thing.display_name or thing.io_type, "tooltip": thing.tooltip}
                for n, thing in enumerate(schema.outputs)
            },
        }
        for schema in sorted(schemas, key=lambda schema: schema.node_id)
    }


def test_the_english_texts_are_those_of_the_nodes(schemas):
    """Set LATENT_PHYSICS_WRITE=1 to write the file anew after a node's texts changed; translations start from
    it."""
    expected = definitions(schemas)
    if os.environ.get("LATENT_PHYSICS_WRITE") == "1":
        LOCALE.write_text(json.dumps(expected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    written = json.loads(LOCALE.read_text(encoding="utf-8"))
    changed = [name for name in sorted(expected | written) if expected.get(name) != written.get(name)]
    assert not changed, f"{changed} changed: run `LATENT_PHYSICS_WRITE=1 pytest tests/nodes/test_help.py`"


CHINESE = re.compile("[\u4e00-\u9fff]")


def leaves(texts: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every text of a locale file by its place."""
    if isinstance(texts, str):
        return {path: texts}
    return {place: text for key, part in texts.items() for place, text in leaves(part, (*path, key)).items()}


def test_the_chinese_texts_have_every_key_and_leave_nothing_in_english():
    """Start from locales/en/nodeDefs.json: the same keys, all texts in Chinese."""
    chinese = LOCALE.parent.parent / "zh" / "nodeDefs.json"
    here, there = (leaves(json.loads(path.read_text(encoding="utf-8"))) for path in (LOCALE, chinese))
    assert not [f"missing: {place}" for place in here.keys() - there.keys()]
    assert not [f"no longer there: {place}" for place in there.keys() - here.keys()]
    assert not [f"not translated: {place}" for place, text in there.items() if not CHINESE.search(text)]


def chinese_page(texts: dict, own: str) -> str:
    """A help page from a node's Chinese texts; `own` is what stands behind them, from "## \u7528\u6cd5" (how
    to use it) on."""
    lines = [f"# {texts['display_name']}", "", texts["description"], ""]
    for title, part in (("\u8f93\u5165", "inputs"), ("\u8f93\u51fa", "outputs")):
        if texts[part]:
            lines += [f"## {title}", *(f"- {entry}" for entry in texts[part]), ""]
    return "\n".join(lines).rstrip() + "\n" + own


def named(schema, texts: dict) -> dict:
    """The Chinese texts with lists of "**id** (name): tooltip" for inputs and outputs."""
    ids = {
        "inputs": {thing.id: thing.id for thing in schema.inputs},
        "outputs": {str(n): thing.display_name or thing.io_type for n, thing in enumerate(schema.outputs)},
    }
    lists = {
        part: [
            f"**{ids[part][key]}**\uff08{text['name']}\uff09\uff1a{text['tooltip']}"
            for key, text in texts[part].items()
        ]
        for part in ids
    }
    return {**texts, **lists}


def test_every_node_has_a_chinese_help_page_of_its_chinese_texts(schemas):
    """Set LATENT_PHYSICS_WRITE=1 to write the lists anew; what follows them is written by hand and kept."""
    chinese = json.loads((LOCALE.parent.parent / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    stale = []
    for schema in schemas:
        page = ROOT / "web" / "docs" / schema.node_id / "zh.md"
        there = page.read_text(encoding="utf-8") if page.is_file() else ""
        own = there[there.find(OWN) :] if OWN in there else ""
        expected = chinese_page(named(schema, chinese[schema.node_id]), own)
        if os.environ.get("LATENT_PHYSICS_WRITE") == "1":
            page.parent.mkdir(exist_ok=True)
            page.write_text(expected, encoding="utf-8")
        elif there != expected:
            stale.append(schema.node_id)
    assert not stale, f"{stale} changed: run `LATENT_PHYSICS_WRITE=1 pytest tests/nodes/test_help.py`"


OWN = "\n## \u7528\u6cd5"
"""The heading before what a Chinese page says beyond its node's texts."""
