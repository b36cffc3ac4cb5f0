"""The CUDA kernel from Python: which variant (variants.py), its code (compile.py), a call with a CUDA array (launch.py)."""
