"""Compares vox_serve with its peers on the same work; idle threads sleep, as in the server."""

from vox_serve.workers.threads import let_threads_sleep

let_threads_sleep()  # before torch is loaded
