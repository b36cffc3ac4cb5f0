"""The LLM half: a local ONNX decoder (decoder.py) and how the next token is chosen (sampling.py)."""
