"""The names of parts and of their members, held against the two APIs' own packages."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import anthropic.types as anthropic
from anthropic.types.content_block_param import ContentBlockParam
from openai.types import chat, responses

from services.node.api.chat import MESSAGE
from services.node.api.chat import PARTS as CHAT_PARTS
from services.node.api.kinds import Members
from services.node.api.messages import BLOCKS
from services.node.api.responses import ITEMS
from services.node.api.responses import PARTS as ITEM_PARTS

STORED = {"file_id"}
"""What names a thing that a provider keeps."""
OF_CALLS = {"caller", "name", "namespace", "status"}
"""What some calls and some outputs of calls have."""
MESSAGES = (
    chat.ChatCompletionAssistantMessageParam,
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionFunctionMessageParam,
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionToolMessageParam,
    chat.ChatCompletionUserMessageParam,
)
CHAT = (*typing.get_args(chat.ChatCompletionContentPartParam), chat.ChatCompletionContentPartRefusalParam)
IN_ITEMS = (
    *typing.get_args(responses.ResponseInputContentParam),
    responses.ResponseInputAudioParam,
    responses.ResponseOutputTextParam,
    responses.ResponseOutputRefusalParam,
)


def names(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in kind.__required_keys__ | kind.__optional_keys__}


def by_type(kinds: tuple[Any, ...]) -> dict[str, set[str]]:
    """The members of each kind that has a type; of two of one type those of either."""
    found: dict[str, set[str]] = {}
    for kind in kinds:
        if "type" in names(kind):
            said = typing.get_type_hints(kind)["type"]
            for each in typing.get_args(said):
                for literal in typing.get_args(each) or (each,):
                    found.setdefault(literal, set()).update(names(kind))
    return found


def known(types: Mapping[str, Members]) -> dict[str, set[str]]:
    return {name: set(members.known) for name, members in types.items()}


def test_chats_parts() -> None:
    assert known(CHAT_PARTS.sorts) == by_type(CHAT) | {
        "audio_url": {"type", "audio_url"},
        "video_url": {"type", "video_url"},
    }


def test_chats_messages() -> None:
    assert {*MESSAGE.known, "role"} - names(*MESSAGES) == {"annotations", "reasoning", "reasoning_content"}
    assert names(*MESSAGES) <= {*MESSAGE.known, "role"}


def test_anthropics_blocks() -> None:
    defined = by_type(typing.get_args(ContentBlockParam))
    taken = known(BLOCKS.sorts)
    assert taken.keys() <= defined.keys()
    for name in taken:
        assert defined[name] - taken[name] <= {"transformations"}, name
        assert taken[name] - defined[name] == set(), name
    # What tools of the provider's own did, and a file that it keeps.
    others = {"container_upload", "server_tool_use"}
    assert all(name in others or name.endswith("_tool_result") for name in defined.keys() - taken.keys())


def test_anthropics_images() -> None:
    image: Any = BLOCKS.sorts["image"].known["source"].kinds[dict]
    assert known(image.sorts) == by_type((anthropic.Base64ImageSourceParam, anthropic.URLImageSourceParam))


def test_parts_of_items() -> None:
    defined = by_type(IN_ITEMS)
    assert known(ITEM_PARTS.sorts) == {name: members - STORED for name, members in defined.items()}


def test_items() -> None:
    defined = by_type(typing.get_args(responses.ResponseInputItemParam))
    for name, members in known(ITEMS.sorts).items():
        assert members <= defined[name] | OF_CALLS, name
        assert defined[name] <= members, name
