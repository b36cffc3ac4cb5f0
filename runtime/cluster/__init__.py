"""Several machines: a batch job that turns files into tokens (batch.py) and server replicas (app.py), both on Ray.

Without Ray, the batch job runs in a thread pool of this process, with the same output; files.py and parts.py do not use Ray.
"""
