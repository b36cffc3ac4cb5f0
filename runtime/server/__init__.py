"""An OpenAI-compatible HTTP server over one or several bundles: `python -m runtime serve BUNDLE…`.

The files in the order in which a request passes them: protocol (bounded connections) · guard (host, key, metrics) · app (routes,
errors) · body and memory (limits while reading) · schema and parameters (what may be asked) · admission (bounded queue, deadline,
drain) · media, base64_text and fetch (where a clip may come from) · request_clips, clips and clip_encoder (encode once, cache) ·
chat_job, chat, stream and video (the routes' work) · metrics. models.py is what is loaded, serve.py starts it, page/ is what a browser
shows; options.py is the one definition of the options.
"""
