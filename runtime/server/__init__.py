"""An OpenAI-compatible HTTP server over one or several bundles: `python -m runtime serve BUNDLE…`.

The files, in the order in which a request passes through them: protocol (bounded connections) · guard (host, key, metrics) · app
(routes, errors) · body and memory (limits while reading) · schema and parameters (what a request may contain) · admission (bounded
queue, deadline, drain) · media and fetch (where a clip may come from) · clips and clip_encoder (encode once, cache) · chat_job,
chat, stream and video (the work of the routes). models.py is what is loaded, state.py what the routes share, serve.py starts the
server, page/ is the browser's page; options.py defines the options.
"""
