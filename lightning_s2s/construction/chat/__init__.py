"""LLMs that write and judge: one interface for a server and for a model of this machine."""

from lightning_s2s.construction.chat.base import ChatModel, ChatReply, ChatRequest
from lightning_s2s.construction.chat.local import LocalChat
from lightning_s2s.construction.chat.questions import Choice, Number, ParsedAnswer, Question, Text, ask_questions
from lightning_s2s.construction.chat.server import ChatServer

__all__ = [
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "ChatServer",
    "Choice",
    "LocalChat",
    "Number",
    "ParsedAnswer",
    "Question",
    "Text",
    "ask_questions",
]
