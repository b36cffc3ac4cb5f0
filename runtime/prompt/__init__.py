"""From a question to what the LLM reads: chat template, token ids, and the embeddings of visual tokens between them."""

from runtime.prompt.prompt import Prompt, PromptIds, prompt_ids

__all__ = ["Prompt", "PromptIds", "prompt_ids"]
