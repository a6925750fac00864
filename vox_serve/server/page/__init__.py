"""The web pages: one for trying the voices and one that shows the API.

`make page` builds `static/` from the repository's folder `page/`.
"""
