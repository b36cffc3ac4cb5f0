"""The LLM: one decoder step (step.py), one conversation or a batch of them (decoder.py, slots.py), and LLMs that a server asks (chat.py)."""
