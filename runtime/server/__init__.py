"""An OpenAI-compatible HTTP server over one or several bundles: `python -m runtime serve BUNDLE…`.

The files in the order in which a request passes them: app (routes, key, errors) · body (size limit) · schema (what may be asked) ·
admission (bounded queue, deadline, drain) · media and fetch (where a clip may come from) · clips (encode once, cache) ·
chat and video (the routes' work) · metrics. models.py holds what is loaded, serve.py starts it, page/ is what a browser sees.
"""
