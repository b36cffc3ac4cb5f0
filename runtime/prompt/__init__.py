"""From a question to what the LLM reads: chat template, token ids, and the embeddings of visual tokens between them."""

from runtime.prompt.ids import PromptIds
from runtime.prompt.prompt import Prompt

__all__ = ["Prompt", "PromptIds"]
