"""More machines than one: a batch job that turns files into tokens (batch.py) and server replicas (app.py), both on Ray.

files.py and parts.py know nothing of Ray: without it the batch job runs in a pool of this process, with the same output.
"""
