"""Who writes the dialogues: a grammar, or an LLM by prompts."""

from lightning_s2s.construction.writing.base import DialogueWriter, WritingJob
from lightning_s2s.construction.writing.grammar_writer import GrammarWriter
from lightning_s2s.construction.writing.prompted import PromptedWriter

__all__ = ["DialogueWriter", "GrammarWriter", "PromptedWriter", "WritingJob"]
