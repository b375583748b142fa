"""What a user copies or follows in README works: flags and presets of commands, and links."""

import re
from pathlib import Path

import pytest

import evaluate
from blockdrop_min.lab import settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "NOTES.md"]
PARSERS = {"train.py": settings.make_parser, "evaluate.py": evaluate.make_parser}


def commands(text):
    """The commands in a document's code: a list of (program, its arguments as one string)."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found = []
    for code in [*blocks, *spans]:
        code = code.replace("\\\n", " ")
        found += re.findall(r"(train\.py|evaluate\.py)\b([^;&|#]*)", code)
    return found


def test_commands_are_found_in_blocks_and_spans():
    block = "```bash\npython train.py --b \\\n 2\n```"
    text = f"Do `python train.py --a 1; python evaluate.py x`.\n{block}"
    found = [(program, arguments.split()) for program, arguments in commands(text)]
    train = [("train.py", ["--b", "2"]), ("train.py", ["--a", "1"])]
    assert found == [*train, ("evaluate.py", ["x"])]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_flag_of_a_command_is_one(name):
    unknown = []
    for program, arguments in commands((ROOT / name).read_text()):
        known = PARSERS[program]().format_help()
        flags = re.findall(r"(?<!\S)--[a-z-]+", arguments)
        unknown += [(program, flag) for flag in flags if not re.search(rf"{flag}\b(?!-)", known)]
    assert unknown == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_preset_of_a_command_is_one(name):
    for _, arguments in commands((ROOT / name).read_text()):
        for preset in re.findall(r"--preset[ =]([a-z0-9-]+)", arguments):
            assert preset in settings.PRESETS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_to_a_file_leads_to_one(name):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
