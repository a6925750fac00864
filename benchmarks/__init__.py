"""Measurements beside peers, on the same work in one run; idle threads sleep, as in the server."""

from vox_serve.workers.threads import let_threads_sleep

let_threads_sleep()  # before anything here loads torch
