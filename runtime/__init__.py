"""The device half: bundle -> compressed visual tokens -> answer. Never imports torch, transformers or export."""

__version__ = "0.1.0"
