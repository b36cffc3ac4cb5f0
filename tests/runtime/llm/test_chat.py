"""The defaults of a chat."""

from __future__ import annotations

from runtime.llm.chat import Chat, Usage
from runtime.llm.sampling import Sampling


def test_a_chat_without_wishes_is_greedy_and_has_no_limits():
    chat, other = Chat(["hello"], []), Chat([], [])
    assert (chat.messages, chat.clips, chat.max_tokens, chat.stop, chat.deadline) == (["hello"], [], None, (), float("inf"))
    assert chat.sampling == Sampling(temperature=0.0, top_p=1.0, seed=None)
    assert chat.usage == Usage(0, 0, 0, {}, []) and chat.usage == Usage()
    chat.usage.warnings.append("x")
    chat.usage.seconds["decode"] = 1.0
    assert other.usage == Usage()
