"""From a question to what the LLM reads: chat template, token ids, and the embeddings of visual tokens between them."""

from runtime.prompt.template import Prompt, PromptIds

__all__ = ["Prompt", "PromptIds"]
