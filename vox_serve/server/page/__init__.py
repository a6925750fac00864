"""The web pages: one that speaks and one that shows the API.

`static/` is built from the folder `page/` of the repository by `make page`.
"""
