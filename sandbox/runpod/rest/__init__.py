"""RunPod's REST API, version 2, as far as a deployment needs it.

`requests` says what a call may contain. `account` holds the templates, volumes, registries and endpoints with the rules
between them, `catalog` the GPU types with prices and stock. `api` serves both over HTTP; `problems` is the shape of
its refusals and `quota` its rate limit.
"""
