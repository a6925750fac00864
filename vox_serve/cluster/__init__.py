"""The server on several machines: an application of Ray Serve, with the extra `ray`.

`application` describes the deployments to Ray, `ingress` and `replica` are what they run, and
`link` carries the messages between them.  Routing, scaling, placement and health are Ray's.
"""
