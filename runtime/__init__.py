"""The device half: bundle -> compressed visual tokens -> answer. Never imports torch, transformers or export."""

import os

__version__ = "0.1.0"

# ONNX Runtime's own packages send facts about sessions and models to Microsoft since 1.29, unless this is set before they start.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
